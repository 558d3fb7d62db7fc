// The second part: on, with as many pairs again of edits that depend on where something is (mirror, shapes).
(import 'sft.jsonnet') + {
  max_steps: 2500,
  learning_rate: 7e-4,
  min_learning_rate: 2e-5,
  warmup_steps: 50,
}
