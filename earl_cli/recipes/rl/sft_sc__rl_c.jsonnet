// A model trained on simple and complex edits together learns from complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').sc
