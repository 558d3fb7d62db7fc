// The 8 B model on one consumer GPU of 24 GB: low-rank adapters (LoRA) on 4-bit weights (QLoRA, arXiv 2305.14314).
(import 'simple.jsonnet') + {
  batch_size: 1,
  accumulation: 64,
  processes: 1,
  sharding: 'none',
  lora_rank: 32,
  lora_alpha: 64,
  quantize: '4bit',
  dropout: 0,
  gallery_examples: 4,
}
