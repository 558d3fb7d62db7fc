// A model trained on simple edits learns from simple and complex edits. The paper's best model.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').s
