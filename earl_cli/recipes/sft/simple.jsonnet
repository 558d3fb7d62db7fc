// The paper's supervised training on simple edits (arXiv 2508.01119): BAAI/Emu3-Stage1 on 4 GPUs, 64 examples per step.
// The data is given on the command line: earl sft --config sft/simple --data omniedit/ --validation omniedit-dev/ -o run/
{
  model: 'BAAI/Emu3-Stage1',
  coefficients: null,

  epochs: 10,
  batch_size: 2,
  accumulation: 8,
  processes: 4,
  learning_rate: 1e-4,
  min_learning_rate: 1e-5,
  warmup_steps: 30,
  weight_decay: 0.1,
  max_grad_norm: 5.0,
  betas: [0.9, 0.95],
  epsilon: 1e-6,
  dropout: 0.1,
  loss_mean: 'tokens',  // published: 'batch', the mean of the means of the eight batches
  seed: 42,
  max_length: 3000,
  too_long: 'keep',

  separate_vocabularies: false,
  gradient_checkpointing: true,
  precision: 'bfloat16',
  tf32: true,
  attention: 'auto',
  sharding: 'zero3',

  validate_every: 100,
  validation_examples: 1000,
  checkpoint_every: 100,
  keep_checkpoints: 2,  // published: 50, which take 6 TB for 8 B parameters
}
