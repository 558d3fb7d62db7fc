// A model trained on simple edits with a chain of thought learns from simple and complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').sc + (import 'sft.libsonnet').think_s
