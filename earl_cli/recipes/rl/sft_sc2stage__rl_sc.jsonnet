// A model trained on simple, then complex edits learns from simple and complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').sc2stage
