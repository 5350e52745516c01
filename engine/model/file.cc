#include "engine/model/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/strings.h"

namespace hyserve::model {
namespace {

// Linux moves at most about 2 GiB per call; smaller pieces also let a signal through.
constexpr uint64_t kMaxBytesPerCall = uint64_t{64} << 20;

}  // namespace

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileDescriptor::~FileDescriptor() { Close(); }

bool FileDescriptor::Close() {
  if (fd_ < 0) return true;
  return close(std::exchange(fd_, -1)) == 0;
}

absl::Status FileError(int error, std::string_view name, std::string_view action) {
  const std::string message =
      StrCat(name, ": cannot ", action, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR: return absl::NotFoundError(message);
    case EACCES:
    case EPERM: return absl::PermissionDeniedError(message);
    case EEXIST: return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT: return absl::ResourceExhaustedError(message);
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR: return absl::InvalidArgumentError(message);
    default: return absl::DataLossError(message);
  }
}

absl::StatusOr<InputFile> InputFile::Open(const std::string& path, std::string name) {
  InputFile file;
  file.name_ = std::move(name);
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  file.fd_ = FileDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.fd_.get() < 0) return FileError(errno, file.name_, "open");
  struct stat info = {};
  if (fstat(file.fd_.get(), &info) != 0) return FileError(errno, file.name_, "stat");
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(StrCat(file.name_, ": not a regular file"));
  }
  file.size_bytes_ = static_cast<uint64_t>(info.st_size);
  file.modified_ = info.st_mtim;
  return file;
}

absl::Status InputFile::Read(uint64_t offset, void* out, uint64_t bytes) const {
  char* cursor = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = pread(fd_.get(), cursor, std::min(bytes, kMaxBytesPerCall),
                              static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(errno, name_, "read");
    if (got == 0) {
      return absl::DataLossError(StrCat(name_, ": ends at byte ", offset,
                                        " although it was larger when it was opened"));
    }
    cursor += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

absl::Status InputFile::CheckUnchanged() const {
  struct stat info = {};
  if (fstat(fd_.get(), &info) != 0) return FileError(errno, name_, "stat");
  if (static_cast<uint64_t>(info.st_size) != size_bytes_ ||
      info.st_mtim.tv_sec != modified_.tv_sec || info.st_mtim.tv_nsec != modified_.tv_nsec) {
    return absl::DataLossError(StrCat(name_, ": changed while it was read"));
  }
  return absl::OkStatus();
}

absl::StatusOr<OutputFile> OutputFile::Create(const std::string& path, std::string name) {
  OutputFile file;
  file.name_ = std::move(name);
  file.fd_ = FileDescriptor(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (file.fd_.get() < 0) return FileError(errno, file.name_, "create");
  return file;
}

absl::Status OutputFile::Write(const void* data, uint64_t bytes) {
  const char* cursor = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = write(fd_.get(), cursor, std::min(bytes, kMaxBytesPerCall));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return FileError(errno, name_, "write");
    cursor += put;
    bytes -= static_cast<uint64_t>(put);
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Finish() {
  if (fsync(fd_.get()) != 0) return FileError(errno, name_, "flush");
  if (!fd_.Close()) return FileError(errno, name_, "close");
  return absl::OkStatus();
}

}  // namespace hyserve::model
