/* Stands in for libcuda.so.1: answers what Triton's launcher asks, and hands each launch to a function of ours. */
#include <stddef.h>
#include <stdint.h>

typedef struct {
  int shared, multiprocessors, registers, warp_size, major, minor;
} chip_t;
/* The first fields of CUlaunchConfig. */
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} config_t;
typedef int (*launch_t)(const config_t *config, uint64_t function, void **parameters);

static chip_t chip;
static launch_t launch;
static intptr_t modules = 0x1000;

void emulate_chip(chip_t c) { chip = c; }
void emulate_launch(launch_t f) { launch = f; }

enum { INVALID_VALUE = 1 };

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { return *v = 13000, 0; }
int cuGetErrorString(int error, const char **text) { return *text = "refused by the emulator", 0; }
int cuCtxGetCurrent(void **context) { return *context = (void *)1, 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuCtxGetLimit(size_t *value, int limit) { return *value = 0, 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 10: return *value = chip.warp_size, 0;
  case 12: case 82: return *value = chip.registers, 0;
  case 16: return *value = chip.multiprocessors, 0;
  case 75: return *value = chip.major, 0;
  case 76: return *value = chip.minor, 0;
  case 81: return *value = chip.shared + 1024, 0;
  case 97: return *value = chip.shared, 0;
  default: return *value = 0, 0;
  }
}
int cuModuleLoadData(void **module, const void *image) { return *module = (void *)(modules += 16), 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return *function = module, 0; }
int cuModuleUnload(void *module) { return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { return *value = attribute == 0 ? 1024 : 0, 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int preference) { return 0; }
int cuPointerGetAttribute(uint64_t *value, int attribute, uint64_t pointer) { return *value = pointer, 0; }
int cuStreamIsCapturing(void *stream, int *status) { return *status = 0, 0; }
int cuLaunchKernelEx(const config_t *config, uint64_t function, void **parameters, void **extra) {
  return launch ? launch(config, function, parameters) : INVALID_VALUE;
}
/* Of tensor maps and clusters nothing is emulated. */
int cuTensorMapEncodeTiled(void) { return INVALID_VALUE; }
int cuTensorMapEncodeIm2col(void) { return INVALID_VALUE; }
int cuOccupancyMaxActiveClusters(void) { return INVALID_VALUE; }
int cuLaunchKernel(void) { return INVALID_VALUE; }
