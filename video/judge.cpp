#include "video/judge.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <numeric>

#include "slidetile/parallel.h"
#include "video/sample.h"
#include "video/torch_errors.h"

namespace slidetile::video {

Judgement judge(const JudgeRequest& request) {
  require(request.batch >= 1, "judge: a batch of ", request.batch, ", expected 1 or more");
  require(request.threads >= 0, "judge: ", request.threads, " threads, expected 1 or more, or 0 for all");
  std::vector<Scene> scenes;
  for (const std::string& sentence : request.sentences) scenes.push_back(scene_from_sentence(sentence));
  return with_torch_errors("judge", [&] {
    const torch::Device device = device_from_name("judge", request.device);
    at::set_num_threads(request.threads > 0 ? request.threads : usable_threads());
    const Model model = load_model(request.model, device, device.is_cuda() ? torch::kBFloat16 : torch::kFloat32);
    Judgement judgement;
    const auto count = static_cast<int64_t>(scenes.size());
    for (int64_t first = 0; first < count; first += request.batch) {
      const int64_t last = std::min(count, first + request.batch);
      SampleRequest sampling;
      sampling.extent = request.extent;
      sampling.steps = request.steps;
      sampling.guidance = request.guidance;
      sampling.pattern = request.pattern;
      for (int64_t i = first; i < last; ++i) {
        sampling.sentences.push_back(request.sentences[static_cast<size_t>(i)]);
        sampling.seeds.push_back(request.seed + static_cast<uint64_t>(i));
      }
      const SampleResult sampled = sample(model, sampling);
      judgement.seconds += std::accumulate(sampled.step_seconds.begin(), sampled.step_seconds.end(), 0.0);
      judgement.density = sampled.density;
      judgement.kernel = sampled.kernel;
      const std::vector<Clip> clips = clips_of(sampled.latents);
      std::vector<Verdict> verdicts(clips.size());
      default_executor().run(last - first, [&](int64_t i, int) {
        const Scene& scene = scenes[static_cast<size_t>(first + i)];
        const Clip& clip = clips[static_cast<size_t>(i)];
        verdicts[static_cast<size_t>(i)] = {request.sentences[static_cast<size_t>(first + i)], score(clip, scene),
                                            read_clip(clip, static_cast<int>(scene.sprites.size()))};
      });
      judgement.verdicts.insert(judgement.verdicts.end(), verdicts.begin(), verdicts.end());
      if (request.on_batch) request.on_batch(last, count);
    }
    return judgement;
  });
}

}  // namespace slidetile::video
