// What torch's own library asks of a device before tensors may lie on it: that it is there, and streams
// that have nothing to wait for. Loaded before torch is imported; see card.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {
const Device kCard{DeviceType::CUDA, 0};

struct Still : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Device getDevice() const override { return kCard; }
  Device exchangeDevice(Device) const override { return kCard; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, kCard); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kCard); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return Stream(Stream::DEFAULT, kCard); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, kCard); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, kCard); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Still);
}  // namespace c10::impl

namespace at {
struct Pretended : CUDAHooksInterface {
  explicit Pretended(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isPinnedPtr(const void*) const override { return false; }
  void deviceSynchronize(DeviceIndex) const override {}
};
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Pretended)
}  // namespace at
