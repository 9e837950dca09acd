// The Python module discfused._C. It is empty: loading it registers the operators.

#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module{};
  module.m_base = PyModuleDef_HEAD_INIT;
  module.m_name = "_C";
  module.m_size = -1;
  return PyModule_Create(&module);
}
