// Definitions of StreamWriter's members; include stream_writer.h instead.
#ifndef HYSERVE_SERVICES_COMMON_STREAM_WRITER_IMPL_H_
#define HYSERVE_SERVICES_COMMON_STREAM_WRITER_IMPL_H_

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "services/common/stream_writer.h"

namespace hyserve::common {

// gRPC's half: forwards to the writer, which it keeps alive until OnDone().
template <typename Message, typename Wire>
class StreamWriter<Message, Wire>::Reactor final : public grpc::ServerWriteReactor<Wire> {
 public:
  explicit Reactor(std::shared_ptr<StreamWriter> writer) : writer_(std::move(writer)) {}
  void OnWriteDone(bool ok) override { writer_->OnWriteDone(ok); }
  void OnCancel() override { writer_->OnCancel(); }
  void OnDone() override {
    const std::shared_ptr<StreamWriter> writer = std::move(writer_);
    delete this;
    writer->OnDone();
  }

 private:
  std::shared_ptr<StreamWriter> writer_;
};

template <typename Message, typename Wire>
std::shared_ptr<StreamWriter<Message, Wire>> StreamWriter<Message, Wire>::Create(
    grpc::CallbackServerContext* context, const StreamWriterOptions& options,
    std::shared_ptr<StreamListener> listener, Merge merge) {
  std::shared_ptr<StreamWriter> writer(
      new StreamWriter(context, options, std::move(listener), merge));
  writer->reactor_ = new Reactor(writer);
  return writer;
}

template <typename Message, typename Wire>
grpc::ServerWriteReactor<Wire>* StreamWriter<Message, Wire>::reactor() {
  return reactor_;
}

template <typename Message, typename Wire>
Message StreamWriter<Message, Wire>::NewMessage() {
  absl::MutexLock lock(&mutex_);
  if (recycled_.empty()) return Message();
  Message message = std::move(recycled_.back());
  recycled_.pop_back();
  return message;
}

template <typename Message, typename Wire>
bool StreamWriter<Message, Wire>::Write(Message message, int32_t tokens) {
  absl::MutexLock lock(&mutex_);
  if (broken_ || final_status_.has_value()) return false;
  Enqueue(std::move(message), tokens);
  StartNext();
  if (!congested_ &&
      (queued_tokens_ > options_.backlog_tokens || queued_bytes_ > options_.backlog_bytes)) {
    congested_ = true;
    if (options_.timers != nullptr && slow_timer_ == 0) {
      slow_timer_ = options_.timers->ScheduleAfter(
          options_.slow_consumer_kill, [self = this->shared_from_this()] { self->OnSlow(); });
    }
  }
  return true;
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::Enqueue(Message message, int32_t tokens) {
  const int64_t bytes = static_cast<int64_t>(message.ByteSizeLong());
  queued_tokens_ += tokens;
  queued_bytes_ += bytes;
  if (merge_ != nullptr && !queue_.empty() && merge_(&queue_.back().message, &message)) {
    queue_.back().tokens += tokens;
    queue_.back().bytes += bytes;
  } else {
    queue_.push_back(Pending{std::move(message), tokens, bytes});
  }
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::Finish(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (final_status_.has_value()) return;
  final_status_ = ToGrpcStatus(status);
  StartNext();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::WriteAndFinish(Message message, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (final_status_.has_value()) return;
  if (!broken_) Enqueue(std::move(message), 0);
  final_status_ = ToGrpcStatus(status);
  StartNext();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::Abort(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (final_status_.has_value()) return;
  queue_.clear();
  final_status_ = ToGrpcStatus(status);
  StartNext();
}

template <typename Message, typename Wire>
bool StreamWriter<Message, Wire>::congested() const {
  absl::MutexLock lock(&mutex_);
  return congested_;
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::StartNext() {
  if (done_ || finish_started_) return;
  if (final_status_.has_value() && (queue_.empty() || broken_)) {
    // Legal while a write is in flight: its OnWriteDone() comes before OnDone().
    finish_started_ = true;
    ClearTimer();
    reactor_->Finish(*final_status_);
    return;
  }
  if (writing_ || broken_ || queue_.empty()) return;
  Pending& next = queue_.front();
  in_flight_ = std::move(next.message);
  queued_tokens_ -= next.tokens;
  queued_bytes_ -= next.bytes;
  queue_.pop_front();
  const Wire* const outgoing = Outgoing();
  writing_ = true;
  if (final_status_.has_value() && queue_.empty() && final_status_->ok()) {
    finish_started_ = true;
    ClearTimer();
    reactor_->StartWriteAndFinish(outgoing, grpc::WriteOptions(), *final_status_);
    return;
  }
  reactor_->StartWrite(outgoing);
}

template <typename Message, typename Wire>
const Wire* StreamWriter<Message, Wire>::Outgoing() {
  if constexpr (std::is_same_v<Message, Wire>) {
    return &in_flight_;
  } else {
    // Fails only beyond 2 GiB, which no backlog comes near.
    serialized_.Clear();
    bool own_buffer = false;
    grpc::SerializationTraits<Message>::Serialize(in_flight_, &serialized_, &own_buffer);
    return &serialized_;
  }
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::OnWriteDone(bool ok) {
  bool writable = false;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) broken_ = true;
    if (ok && recycled_.size() < 2) {
      in_flight_.Clear();
      recycled_.push_back(std::move(in_flight_));
    }
    StartNext();
    if (congested_ && queue_.empty() && !broken_) {
      congested_ = false;
      writable = !final_status_.has_value();
      ClearTimer();
    }
  }
  if (writable) listener_->OnStreamWritable();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::OnCancel() {
  bool notify = false;
  {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    notify = !finish_started_;
    queue_.clear();
    StartNext();  // a status that waited for the queue
  }
  if (notify) listener_->OnStreamCancelled();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::OnSlow() {
  std::shared_ptr<StreamListener> listener;
  {
    absl::MutexLock lock(&mutex_);
    slow_timer_ = 0;
    if (done_ || finish_started_ || !congested_) return;
    listener = listener_;
  }
  listener->OnSlowConsumer();
  Abort(absl::ResourceExhaustedError("slow_consumer: the client does not read its stream"));
  // The status waits behind a write that flow control holds back, possibly forever.
  absl::MutexLock lock(&mutex_);
  if (!done_) context_->TryCancel();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::OnDone() {
  std::shared_ptr<StreamListener> listener;
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
    reactor_ = nullptr;
    queue_.clear();
    ClearTimer();
    listener = std::move(listener_);
  }
  listener->OnStreamDone();
}

template <typename Message, typename Wire>
void StreamWriter<Message, Wire>::ClearTimer() {
  if (slow_timer_ != 0) options_.timers->Cancel(slow_timer_);
  slow_timer_ = 0;
}

}  // namespace hyserve::common

#endif  // HYSERVE_SERVICES_COMMON_STREAM_WRITER_IMPL_H_
