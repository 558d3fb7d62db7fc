// A model trained on simple edits with a chain of thought learns from simple edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').s + (import 'sft.libsonnet').think_s
