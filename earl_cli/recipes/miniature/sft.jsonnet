// The paper's claim in miniature: supervised training of the embedded model on pictures of 48 x 48 pixels.
// make reproduce: earl sft --config miniature/sft --data simple/ --validation validation/ -o run/
(import '../embedded/sft.jsonnet') + {
  max_steps: 120,
  batch_size: 32,
  learning_rate: 5e-4,
  min_learning_rate: 2e-5,
  warmup_steps: 20,
  validate_every: 40,
  checkpoint_every: 40,
}
