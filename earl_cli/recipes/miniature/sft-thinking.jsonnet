// The same, with the plan of every edit written before it.
(import 'sft.jsonnet') + {
  thinking: true,
  cot_keys: ['plan'],
}
