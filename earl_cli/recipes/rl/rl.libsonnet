// Y of sft_X__rl_Y, the edits that a run trains on: s simple, c complex, sc both. The folders are those of
// mair-lab/earl-datasets, or token stores of the same names. The coefficients give every set about 50,000 examples.
local complex = ['magic_brush', 'aurora_ag', 'aurora_kubric', 'ss2', 'vismin', 'human-edit'];
local complex_coefficients = [6, 6, 0.7, 1.55, 3.7, 11];
local recipe = {
  folder:: std.extVar('APP__DATA_DIR'),
  sets:: [],
  data: [self.folder + '/' + name + '/train' for name in self.sets],
};
{
  s: recipe {
    sets:: ['omniedit'],
    coefficients: [1],
  },
  c: recipe {
    sets:: complex,
    coefficients: complex_coefficients,
  },
  sc: recipe {
    sets:: ['omniedit'] + complex,
    coefficients: [0.13] + complex_coefficients,
  },
}
