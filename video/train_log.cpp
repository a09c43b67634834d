#include "video/train_log.h"

#include <cstdio>
#include <sstream>

#include "slidetile/error.h"

namespace slidetile::video {
namespace {

constexpr const char* kHeader = "step,stage,loss,seconds,reversal_0.95,reversal_0.9,reversal_0.85";

}  // namespace

std::string csv_of(const std::vector<TrainRow>& rows) {
  std::string text = std::string(kHeader) + "\n";
  char line[160];
  for (const TrainRow& row : rows) {
    std::snprintf(line, sizeof line, "%lld,%lld,%.9g,%.2f", static_cast<long long>(row.step), static_cast<long long>(row.stage), row.loss,
                  row.seconds);
    text += line;
    for (size_t i = 0; i < kReversalNoise.size(); ++i) {
      line[0] = '\0';
      if (row.reversal) std::snprintf(line, sizeof line, "%.5f", (*row.reversal)[i]);
      text += std::string(",") + line;
    }
    text += '\n';
  }
  return text;
}

std::vector<TrainRow> rows_from_csv(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  std::string line;
  require(std::getline(lines, line) && line == kHeader, name, ": its log starts with '", line.substr(0, 80), "', expected '", kHeader, "'");
  std::vector<TrainRow> rows;
  while (std::getline(lines, line)) {
    TrainRow row;
    Reversal reversal{};
    long long step = 0, stage = 0;
    const int read = std::sscanf(line.c_str(), "%lld,%lld,%lf,%lf,%lf,%lf,%lf", &step, &stage, &row.loss, &row.seconds, &reversal[0],
                                 &reversal[1], &reversal[2]);
    require(read == 4 || read == 7, name, ": its log has the row '", line.substr(0, 80), "'");
    row.step = step, row.stage = stage;
    if (read == 7) row.reversal = reversal;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace slidetile::video
