// sft/simple on data with a chain of thought; which of its keys is the command line's: --cot-keys plan,objects
(import 'simple.jsonnet') + { thinking: true }
