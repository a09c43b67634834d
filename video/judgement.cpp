// What a judgement adds up, and the file of sentences that it starts from.
#include <fstream>

#include "slidetile/error.h"
#include "video/judge.h"

namespace slidetile::video {

Judgement::Shares Judgement::shares() const {
  Shares shares;
  double objects = 0;
  for (const Verdict& verdict : verdicts) {
    objects += verdict.score.objects;
    shares.shape += verdict.score.shapes;
    shares.colour += verdict.score.colours;
    shares.motion += verdict.score.motions;
    shares.all += verdict.score.all() ? 1 : 0;
  }
  if (verdicts.empty()) return shares;
  shares.shape /= objects, shares.colour /= objects, shares.motion /= objects;
  shares.all /= static_cast<double>(verdicts.size());
  return shares;
}

std::array<std::array<int, kMotions + 1>, kMotions> Judgement::motions() const {
  std::array<std::array<int, kMotions + 1>, kMotions> counts{};
  for (const Verdict& verdict : verdicts) {
    const Scene scene = scene_from_sentence(verdict.sentence);
    if (scene.sprites.size() != 1) continue;
    const auto column = verdict.score.colours == 1 ? static_cast<size_t>(verdict.seen.front().motion) : static_cast<size_t>(kMotions);
    ++counts[static_cast<size_t>(scene.sprites[0].motion)][column];
  }
  return counts;
}

std::vector<std::string> read_sentences(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail(ErrorCode::kIo, path, ": cannot be read");
  std::vector<std::string> sentences;
  for (std::string line; std::getline(file, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    scene_from_sentence(line);
    sentences.push_back(line);
  }
  require(!sentences.empty(), path, ": holds no sentences");
  return sentences;
}

}  // namespace slidetile::video
