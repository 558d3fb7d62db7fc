// A model trained on simple edits learns from simple edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').s + (import 'sft.libsonnet').s
