// The writing side of a server-streaming call: a queue with one write in flight.
//
// Any thread may Write(), Finish() or Abort(), also after the call has ended. Messages leave in
// order; Finish() comes after them, exactly once. Back-pressure: with more than backlog_tokens or
// backlog_bytes waiting the stream is congested; the producer must then pause (nothing is dropped:
// the queue is bounded by the producer's obedience), and gets OnStreamWritable() once the queue is
// empty again. A stream that stays congested for slow_consumer_kill is ended with
// RESOURCE_EXHAUSTED "slow_consumer", after OnSlowConsumer().
//
// Use: derive from StreamListener, make a writer per call in the service's method and return
// writer->reactor(). The listener is called without the writer's lock held; it is kept alive until
// OnStreamDone(), its last call.
//
//   auto writer = StreamWriter<v1::DecodeEvent>::Create(context, options, listener);
//   ...
//   return writer->reactor();
//
// A method that is registered raw (its request is parsed by the service, not by gRPC) takes
// StreamWriter<Message, grpc::ByteBuffer>: messages are serialized when they leave.
#ifndef HYSERVE_SERVICES_COMMON_STREAM_WRITER_H_
#define HYSERVE_SERVICES_COMMON_STREAM_WRITER_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/common/status_mapping.h"
#include "services/common/timer_queue.h"

namespace hyserve::common {

struct StreamWriterOptions {
  int32_t backlog_tokens = 256;
  int64_t backlog_bytes = 64 << 10;
  absl::Duration slow_consumer_kill = absl::Seconds(10);
  TimerQueue* timers = nullptr;  // must outlive the stream; null: slow consumers are never ended
};

class StreamListener {
 public:
  virtual ~StreamListener() = default;
  // The client cancelled, its deadline passed, or its connection was lost. At most once.
  virtual void OnStreamCancelled() {}
  // The queue is empty after it was congested.
  virtual void OnStreamWritable() {}
  // The stream was congested for too long and has been ended.
  virtual void OnSlowConsumer() {}
  // The last call, always.
  virtual void OnStreamDone() {}
};

template <typename Message, typename Wire = Message>
class StreamWriter final : public std::enable_shared_from_this<StreamWriter<Message, Wire>> {
 public:
  // Adds `next` to `last`, which has not left yet; false: keep both. Called under the writer's
  // lock.
  using Merge = bool (*)(Message* last, Message* next);

  // `context` is the call's own.
  static std::shared_ptr<StreamWriter> Create(grpc::CallbackServerContext* context,
                                              const StreamWriterOptions& options,
                                              std::shared_ptr<StreamListener> listener,
                                              Merge merge = nullptr);

  // What the service's method returns. Owned by gRPC and this object together.
  grpc::ServerWriteReactor<Wire>* reactor();

  // An empty message with the memory of one that has left.
  Message NewMessage();
  // False: the stream has ended, the message was dropped. `tokens` counts towards the backlog.
  bool Write(Message message, int32_t tokens = 0);
  // Ends the stream after the queued messages. Later calls of Finish, Abort and Write do nothing.
  void Finish(const absl::Status& status);
  // Write() and Finish() in one operation.
  void WriteAndFinish(Message message, const absl::Status& status);
  // Drops what is queued and ends the stream.
  void Abort(const absl::Status& status);

  bool congested() const;

 private:
  class Reactor;
  struct Pending {
    Message message;
    int32_t tokens = 0;
    int64_t bytes = 0;
  };

  StreamWriter(grpc::CallbackServerContext* context, const StreamWriterOptions& options,
               std::shared_ptr<StreamListener> listener, Merge merge)
      : options_(options), listener_(std::move(listener)), merge_(merge), context_(context) {}

  void Enqueue(Message message, int32_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // in_flight_ as gRPC takes it.
  const Wire* Outgoing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();
  void OnSlow();
  void ClearTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const StreamWriterOptions options_;
  // Set until OnDone(), which breaks the cycle of writer and listener. gRPC's other calls come
  // before.
  std::shared_ptr<StreamListener> listener_;
  const Merge merge_;
  grpc::CallbackServerContext* const context_;  // alive until OnDone
  Reactor* reactor_ = nullptr;                  // likewise

  mutable absl::Mutex mutex_;
  std::deque<Pending> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<Message> recycled_ ABSL_GUARDED_BY(mutex_);
  Message in_flight_;           // gRPC's while writing_
  grpc::ByteBuffer serialized_;  // likewise, when Wire is a ByteBuffer
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // cancelled or a write failed
  bool congested_ ABSL_GUARDED_BY(mutex_) = false;
  bool finish_started_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> final_status_ ABSL_GUARDED_BY(mutex_);
  int32_t queued_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  TimerId slow_timer_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace hyserve::common

#include "services/common/stream_writer_impl.h"  // IWYU pragma: export

#endif  // HYSERVE_SERVICES_COMMON_STREAM_WRITER_H_
