// The embedded model, third stage: continued on new examples, half of all kinds and half of edits that depend on
// position.
(import 'sft.jsonnet') + {
  max_steps: 1200,
  learning_rate: 3e-4,
  min_learning_rate: 1e-5,
  warmup_steps: 50,
  validate_every: 200,
  checkpoint_every: 50,
}
