// A model trained on simple and complex edits together learns from simple and complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').sc
