// Makes the shared library importable as wavenet._C. Importing it, or loading it with
// torch.ops.load_library, registers the operators. Without Python's headers only the latter works.
#if __has_include(<Python.h>)
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
