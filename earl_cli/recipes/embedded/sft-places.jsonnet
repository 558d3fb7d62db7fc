// The embedded model, second stage: continued, with as many additional examples of edits that depend on position
// (mirror, shapes).
(import 'sft.jsonnet') + {
  max_steps: 2500,
  learning_rate: 7e-4,
  min_learning_rate: 2e-5,
  warmup_steps: 50,
}
