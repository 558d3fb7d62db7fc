// The small model that ships with the package: trained from random weights on two processor cores.
{
  max_steps: 4400,  // 3.5 passes over 20,000 pairs
  batch_size: 16,
  accumulation: 1,
  learning_rate: 1e-3,
  min_learning_rate: 2e-5,
  warmup_steps: 100,
  weight_decay: 0.05,
  clip: 1.0,
  betas: [0.9, 0.98],
  epsilon: 1e-8,
  gradient_checkpointing: false,
  validate_every: 600,
  validation_rows: 200,
  checkpoint_every: 200,
  keep: 2,
  log_every: 20,
}
