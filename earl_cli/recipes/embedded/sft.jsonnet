// The embedded model, first stage: from random weights, on all kinds of edits.
{
  model: null,  // the embedded model itself, unless --model names another start
  max_steps: 2400,
  batch_size: 16,
  accumulation: 1,
  learning_rate: 1e-3,
  min_learning_rate: 4e-4,
  warmup_steps: 100,
  weight_decay: 0.05,
  max_grad_norm: 1.0,
  betas: [0.9, 0.98],
  epsilon: 1e-8,
  separate_vocabularies: true,
  gradient_checkpointing: false,
  validate_every: 600,
  validation_examples: 200,
  checkpoint_every: 200,
  keep_checkpoints: 2,
  log_every: 20,
}
