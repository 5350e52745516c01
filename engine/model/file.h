// Files of a checkpoint: read with pread into the caller's memory, never mapped, so that a file
// that is cut or replaced while it is read gives an error and not a signal.
#ifndef HYSERVE_ENGINE_MODEL_FILE_H_
#define HYSERVE_ENGINE_MODEL_FILE_H_

#include <sys/types.h>

#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hyserve::model {

// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();

  int get() const { return fd_; }
  // Closes now. False: the data may not have reached the disk.
  bool Close();

 private:
  int fd_ = -1;
};

// The error of errno value `error` for the file called `name`: "<name>: cannot <action>: <text>".
absl::Status FileError(int error, std::string_view name, std::string_view action);

// An open regular file. Reading is thread-safe.
class InputFile {
 public:
  // `name` is the file for messages. NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (a directory, a
  // pipe, a device), or the I/O error.
  static absl::StatusOr<InputFile> Open(const std::string& path, std::string name);

  const std::string& name() const { return name_; }
  uint64_t size_bytes() const { return size_bytes_; }

  // Bytes [offset, offset + bytes) into `out`. DATA_LOSS when the file ends before.
  absl::Status Read(uint64_t offset, void* out, uint64_t bytes) const;

  // DATA_LOSS when size or modification time differ from those at Open.
  absl::Status CheckUnchanged() const;

 private:
  FileDescriptor fd_;
  std::string name_;
  uint64_t size_bytes_ = 0;
  timespec modified_ = {};
};

// A new file, written from the front. It must not exist.
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Create(const std::string& path, std::string name);
  absl::Status Write(const void* data, uint64_t bytes);
  // Flushes to the disk and closes.
  absl::Status Finish();

 private:
  FileDescriptor fd_;
  std::string name_;
};

}  // namespace hyserve::model

#endif  // HYSERVE_ENGINE_MODEL_FILE_H_
