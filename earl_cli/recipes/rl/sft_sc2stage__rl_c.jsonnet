// A model trained on simple, then complex edits learns from complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').sc2stage
