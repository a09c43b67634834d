// Stands in for train.cpp and judge.cpp where LibTorch is absent.
#include "slidetile/error.h"
#include "video/judge.h"
#include "video/train.h"

namespace slidetile::video {

const char* why_no_training() noexcept { return "this build has no LibTorch; docs/video.md says how to get it"; }

TrainSummary train(const TrainRequest&) { fail(ErrorCode::kUnsupported, "train: ", why_no_training()); }

Judgement judge(const JudgeRequest&) { fail(ErrorCode::kUnsupported, "judge: ", why_no_training()); }

}  // namespace slidetile::video
