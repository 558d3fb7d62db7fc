// A model trained on simple edits with a chain of thought learns from complex edits.
(import 'published.libsonnet') + (import 'rl.libsonnet').c + (import 'sft.libsonnet').think_s
