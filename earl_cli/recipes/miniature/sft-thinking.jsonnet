// miniature/sft with a chain of thought: the model writes the plan of each edit before the edit.
(import 'sft.jsonnet') + {
  thinking: true,
  cot_keys: ['plan'],
}
