// X of sft_X__rl_Y, the supervised model that a run starts from: s trained on simple edits, think_s on simple edits with
// a chain of thought, sc on simple and complex edits together, sc2stage on simple edits first and complex ones after.
local simple = {
  tokenizer_path: 'BAAI/Emu3-Stage1',
  num_iterations: 3000,
  max_length: 4096,
  batch_size: 4,
};
// The published runs from sc and sc2stage were trained on other data sets, emu3_tokenized_rl_100k/NAME/train, all with
// coefficient 1. They aren't in mair-lab/earl-datasets; APP__RL_100K_DIR is the folder of yours.
local mixed = {
  folder:: std.extVar('APP__RL_100K_DIR'),
  tokenizer_path: 'BAAI/Emu3-Gen',
  assistant_prefill: '<|image start|>',
  coefficients: [1.0 for _ in self.data],
};
{
  s: simple {
    model: 'mair-lab/sft-simple',
    assistant_prefill: '<|image start|>',
  },
  think_s: simple {
    model: 'mair-lab/thinking-sft-simple',
    assistant_prefill: "Let's think step by step. <|start thinking|>",
  },
  sc: mixed {
    model: 'Image-Editing/Emu3-Base-SFT-without_cot-May06_mixed_gc_lr1e-4-checkpoint-4800',
  },
  sc2stage: mixed {
    model: 'Image-Editing/Emu3-Base-SFT-without_cot-May07_mixed_gc_post_lr1e-4-checkpoint-1200',
  },
}
