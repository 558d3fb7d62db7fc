// A model trained on simple edits learns from complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').s
