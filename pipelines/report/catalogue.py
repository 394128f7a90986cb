"""Every sentence and label of a page, in English and in Japanese, side by side.

Placeholders are those of str.format and the same in both languages. What comes from the data (names of
columns, values, reasons that people wrote) is shown as it stands.
"""

# ruff: noqa: RUF001 -- Japanese is written with its own punctuation

MESSAGES: dict[str, tuple[str, str]] = {
    # page
    "title.rollout": ("Rollout report", "段階導入レポート"),
    "title.retraining": ("Retraining report", "再学習レポート"),
    "title.monitor": ("Monitoring report", "監視レポート"),
    "skip": ("Skip to content", "本文へ移動"),
    "contents": ("Contents", "目次"),
    "top": ("Back to top", "先頭へ戻る"),
    "finished": ("Finished {time} UTC", "{time}（UTC）完了"),
    "theme": ("Light or dark", "表示の明暗を切り替える"),
    "noscript": (
        "Charts need JavaScript; every number is in the tables.",
        "グラフの表示にはJavaScriptが必要です。数値はすべて表に掲載しています。",
    ),
    "footer": (
        "Made by dankai from the records of this run. Everything shown was measured; what was not is marked "
        "“not measured”. Times are the table's own unless they say UTC.",
        "この実行の記録からdankaiが作成したレポートです。掲載している数値はすべて実測値で、測定していない項目は"
        "「未測定」と表示しています。時刻は、UTCと明記したものを除きデータの時刻です。",
    ),
    "unmeasured": ("not measured", "未測定"),
    "download": ("Download", "ダウンロード"),
    "download.of": ("{name} as {format}", "{name}（{format}形式）"),
    "download.all": ("All data of this page as JSON", "このページの全データ（JSON形式）"),
    "chart.of": ("Chart: {name}. {text}", "グラフ：{name}。{text}"),
    "table.region": ("Table: {name}", "表：{name}"),
    "and_more": ("and {count} more", "ほか{count}件"),
    "list": (", ", "、"),
    "range": ("{low} to {high}", "{low}～{high}"),
    "never": ("never", "回収不可"),
    "no_interval": ("no interval: too few measurements", "信頼区間なし（測定数不足）"),
    "days": ("{number} days", "{number}日"),
    # stages and verdicts
    "stage.none": ("Not started", "未導入"),
    "stage.pilot": ("Pilot", "試験導入（パイロット）"),
    "stage.training": ("In-house training", "自社データでの学習"),
    "stage.edge": ("Edge deployment", "エッジ展開"),
    "stage.steady": ("Steady operation", "定常運用"),
    "outcome.PASS": ("PASS", "合格"),
    "outcome.HOLD": ("HOLD", "保留"),
    "outcome.FAIL": ("FAIL", "不合格"),
    "outcome.promoted": ("PROMOTED", "切り替え済み"),
    "outcome.held": ("HELD", "保留"),
    "outcome.dropped": ("DROPPED", "不採用"),
    "outcome.refused": ("NOT TRAINED", "未実施"),
    "outcome.unfinished": ("UNFINISHED", "未完了"),
    "outcome.none": ("NOTHING TO DO", "対応不要"),
    "outcome.watch": ("WATCH", "要経過観察"),
    "outcome.retrain": ("RETRAIN", "要再学習"),
    "outcome.fault": ("DATA FAULT", "データ異常"),
    "outcome.missing": ("NO GATE ASKED", "判定なし"),
    # verdict in a sentence
    "verdict.is": ("Verdict:", "判定："),
    "verdict.check": (
        "{outcome} · {name}: {value} — {reason}",
        "{outcome}・{name}：{value}（{reason}）",
    ),
    "verdict.check.bare": ("{outcome} · {name}: {reason}", "{outcome}・{name}（{reason}）"),
    "verdict.rollout.stopped": (
        "The climb stopped at the gate of the stage “{stage}”: {outcome}.",
        "「{stage}」段階の判定は「{outcome}」です。次の段階には進んでいません。",
    ),
    "verdict.rollout.reached": (
        "Every gate that was asked passed: the stage “{stage}” is reached.",
        "実施した判定はすべて合格し、「{stage}」段階に到達しました。",
    ),
    "verdict.rollout.waiting": (
        "The gate of the stage “{stage}” passed, and version {version} waits for approval "
        "({given} of {needed} given).",
        "「{stage}」段階の判定は合格です。バージョン{version}は承認待ちです（承認{given}／{needed}名）。",
    ),
    "verdict.rollout.elsewhere": (
        "Every gate that was asked passed, but another model is live: an earlier rollout's, or one that was "
        "rolled back to.",
        "実施した判定はすべて合格ですが、稼働中のモデルは今回のものではありません（以前の導入分、または切り戻し後のモデルです）。",
    ),
    "verdict.rollout.back": (
        "The gate of the stage “{stage}” passed, but the rollout was taken back to “{now}” since.",
        "「{stage}」段階の判定は合格ですが、その後「{now}」段階へ戻されています。",
    ),
    "verdict.rollout.none": ("No gate was asked.", "判定は実施していません。"),
    "verdict.retraining.promoted": (
        "The retrained model won against the one in use and is live.",
        "再学習したモデルが判定に合格し、稼働モデルを切り替えました。",
    ),
    "verdict.retraining.held": (
        "The retrained model is held: the evidence does not decide. The model in use stays live.",
        "再学習したモデルは保留です。優劣を判断できるだけの根拠がそろっていないため、現行モデルの運用を続けます。",
    ),
    "verdict.retraining.waiting": (
        "The retrained model passed and waits for approval. Until then the model in use stays live.",
        "再学習したモデルは判定に合格し、承認待ちです。承認までは現行モデルの運用を続けます。",
    ),
    "verdict.retraining.dropped": (
        "The retrained model failed its gate and is dropped. The model in use stays live.",
        "再学習したモデルは不合格のため採用しません。現行モデルの運用を続けます。",
    ),
    "verdict.retraining.refused": (
        "Nothing was trained. The model in use stays live.",
        "再学習は実施していません。現行モデルの運用を続けます。",
    ),
    "verdict.retraining.unfinished": (
        "The retraining is not finished.",
        "再学習は完了していません。",
    ),
    "verdict.monitor.none": (
        "The batch calls for nothing.",
        "今回のデータについて、必要な対応はありません。",
    ),
    "verdict.monitor.watch": (
        "The batch is worth a look; a retraining is not called for.",
        "今回のデータは確認をお勧めします。再学習の必要はありません。",
    ),
    "verdict.monitor.retrain": (
        "The batch calls for a retraining.",
        "今回のデータから、再学習が必要と判断しました。",
    ),
    "verdict.monitor.fault": (
        "The batch is faulty and was set aside: a person has to look, and nothing is trained on it.",
        "データに異常があるため隔離しました。担当者による確認が必要です。このデータは学習に使用しません。",
    ),
    "verdict.count": (
        "{count} of {total} required checks did not pass:",
        "必須の確認項目{total}件のうち、合格していないものが{count}件あります。",
    ),
    "verdict.live": ("version {version}, stage “{stage}”", "バージョン{version}（「{stage}」段階）"),
    "verdict.not_live": ("nothing", "なし"),
    "fact.live": ("Live now", "稼働中のモデル"),
    "fact.reason": ("Why it was asked for", "再学習の理由"),
    "verdict.record": ("In the words of the record", "記録の原文"),
    "fact.windows": ("Windows judged", "評価したウィンドウ数"),
    "fact.density": ("Blocks read", "読み取るブロックの割合"),
    "fact.duration": ("Duration", "所要時間"),
    "fact.machine": ("Machine", "実行環境"),
    "fact.rows": ("Rows in the batch", "データの行数"),
    "fact.span": ("Period of the rows", "データの期間"),
    "seconds": ("{number} s", "{number}秒"),
    "cpu": ("{name}, {count} cores", "{name}、{count}コア"),
    # stage ladder
    "ladder": ("Where we stand", "現在の段階"),
    "ladder.intro": (
        "A model climbs one stage at a time, and only when the gate of its stage passes.",
        "モデルは、各段階の判定に合格した場合に限り、一段ずつ次へ進みます。",
    ),
    "ladder.here": ("we are here", "現在地"),
    "ladder.done": ("passed", "通過済み"),
    "ladder.ahead": ("not reached", "未到達"),
    "ladder.gate": ("Gate: {outcome}", "判定：{outcome}"),
    "ladder.not_asked": ("Gate not asked in this run", "今回は判定を実施していません"),
    # KPI table
    "kpis": ("What was measured, and what is allowed", "KPIとしきい値"),
    "kpis.intro": (
        "The dot is the measured value, the bar its confidence interval, the line the threshold; the allowed "
        "side is shaded. A check passes when even the pessimistic end of the interval keeps the threshold, "
        "fails when even the optimistic end breaks it, and holds in between. Each row has its own scale.",
        "点は測定値、横棒は信頼区間、縦線はしきい値です。網掛けは許容範囲を示します。信頼区間の不利な側の端でもしきい値を"
        "満たせば合格、有利な側の端でも満たさなければ不合格、その間は保留です。目盛りは行ごとに異なります。",
    ),
    "kpis.stage": ("{stage}: {outcome}", "{stage}：{outcome}"),
    "kpis.kpi": ("KPI", "KPI"),
    "kpis.value": ("Value [confidence interval]", "測定値［信頼区間］"),
    "kpis.bar": ("Interval against threshold", "信頼区間としきい値"),
    "kpis.allowed": ("Allowed", "しきい値"),
    "kpis.n": ("n", "n"),
    "kpis.level": ("{confidence} confidence", "信頼水準{confidence}"),
    "kpis.verdict": ("Verdict", "判定"),
    "kpis.versus": ("{kpi}, difference from {reference}", "{kpi}（{reference}との差）"),
    "kpis.worst": ("{kpi}, worst {group}", "{kpi}・{group}の最悪値"),
    "kpis.group": ("group of {column}", "{column}別"),
    "kpis.at_least": ("at least {bound}", "{bound}以上"),
    "kpis.at_most": ("at most {bound}", "{bound}以下"),
    "kpis.not_worse": ("not worse", "悪化なし"),
    "kpis.margin": ("worse by at most {bound}", "悪化幅{bound}以内"),
    "kpis.severity.warn": ("for information", "参考"),
    "kpis.severity.dry_run": ("dry run, decides nothing", "試行（判定に含めない）"),
    "kpis.bar.text": (
        "{value}, interval {interval}, allowed {allowed}",
        "測定値{value}、信頼区間{interval}、しきい値{allowed}",
    ),
    "counted.windows": ("{n} windows", "{n}ウィンドウ"),
    "counted.timings": ("{n} timings", "{n}回計測"),
    "counted.processes": ("{n} processes", "{n}プロセス"),
    "counted.once": ("{n}", "{n}"),
    "counted.of.windows": ("windows", "ウィンドウ"),
    "counted.of.timings": ("timings", "計測"),
    "counted.of.processes": ("processes", "プロセス"),
    "counted.of.once": ("measurements", "測定"),
    "reference.dense": ("dense model", "密モデル"),
    "reference.baseline": ("simple baseline", "簡易モデル"),
    "reference.champion": ("model in use", "現行モデル"),
    "reference.candidate": ("judged model", "評価対象モデル"),
    "blessing.quality": ("Quality", "品質"),
    "blessing.serving": ("Serving: does it load and answer?", "稼働確認（読み込みと応答）"),
    # why a check did not pass: "reason." and the kind of its cause
    "reason.keeps": (
        "even the pessimistic end of the interval keeps it",
        "信頼区間の不利な側の端でもしきい値を満たすため",
    ),
    "reason.straddles": (
        "the interval lies on both sides of the threshold",
        "信頼区間がしきい値をまたぐため",
    ),
    "reason.breaks": (
        "even the optimistic end of the interval breaks the threshold",
        "信頼区間の有利な側の端でもしきい値を満たさないため",
    ),
    "reason.few": (
        "{found} {counted}: too few, {needed} are needed",
        "{counted}の数が不足（{found}件、必要数{needed}件）",
    ),
    "reason.no_group": (
        "none of {found} groups has the {needed} windows needed",
        "{found}区分のいずれも必要な{needed}ウィンドウに未達",
    ),
    "reason.unmeasured": ("it was not measured", "未測定"),
    "reason.repeated": ("it was measured {found} times", "測定値が{found}件あり一意でないため"),
    "reason.group_twice": ("a group was measured twice", "同じ区分の測定値が重複しているため"),
    "reason.no_reference": ("there is no {reference} to compare with", "比較対象（{reference}）がないため"),
    "reason.other_windows": (
        "the reference was not scored on the same windows",
        "比較対象が同じウィンドウで評価されていないため",
    ),
    "reason.foreign": ("it was measured on something else", "別の対象の測定値であるため"),
    "reason.no_number": (
        "the value or its interval is not a possible number",
        "測定値または信頼区間が数値として成立しないため",
    ),
    "reason.asked": (
        "the gate was asked {found} times, {needed} are allowed: train a new candidate",
        "判定回数が上限（{needed}回）を超過（{found}回目、新たな候補の学習が必要）",
    ),
    "reason.confidence": (
        "its interval states {found} confidence, {needed} is needed",
        "信頼区間の信頼水準が不足（{found}、必要水準{needed}）",
    ),
    "reason.none": ("no", "記載なし"),
    "reason.old": (
        "it was measured {found} hours ago, {needed} are allowed",
        "測定から{found}時間が経過しているため（上限{needed}時間）",
    ),
    "reason.undated": ("it does not say when it was measured", "測定日時が不明のため"),
    "reason.clock": (
        "it is dated after the judgement: set the clock",
        "測定日時が判定より後のため（時計の確認が必要）",
    ),
    # KPIs
    "kpi.auroc": ("AUROC", "AUROC"),
    "kpi.average_precision": ("Average precision", "平均適合率"),
    "kpi.log_loss": ("Log loss", "対数損失"),
    "kpi.mse": ("Mean squared error", "平均二乗誤差"),
    "kpi.mae": ("Mean absolute error", "平均絶対誤差"),
    "kpi.latency_p50_ratio": ("Median latency, sparse ÷ dense", "推論時間の中央値（疎÷密）"),
    "kpi.latency_p99_ratio": (
        "99th percentile of latency, sparse ÷ dense",
        "推論時間の99パーセンタイル（疎÷密）",
    ),
    "kpi.peak_memory_ratio": ("Peak memory, sparse ÷ dense", "最大メモリ使用量（疎÷密）"),
    "kpi.latency_p90_ms": ("90th percentile of latency", "推論時間の90パーセンタイル"),
    "kpi.latency_p99_ms": ("99th percentile of latency", "推論時間の99パーセンタイル"),
    "kpi.error_rate": ("Requests without a usable answer", "正しく応答できなかった要求の割合"),
    "kpi.peak_memory_bytes": ("Peak memory", "最大メモリ使用量"),
    "kpi.bundle_bytes": ("Size of the edge bundle", "エッジ配布物の容量"),
    "kpi.parity_share": (
        "Parity error, as a share of what is allowed",
        "許容差に対する数値一致誤差の割合",
    ),
    "kpi.parity_max_abs_error": (
        "Largest difference from the checkpoint's answers",
        "学習済みモデルとの応答の最大差",
    ),
    "kpi.seed_spread": ("Spread between training seeds", "乱数シード間のばらつき"),
    "kpi.quarantined_share": ("Rows set aside", "隔離した行の割合"),
    "kpi.density": ("Share of blocks read", "読み取ったブロックの割合"),
    "kpi.unread_mass": ("Attention left to summaries", "要約で代替したアテンションの割合"),
    "kpi.missed_mass": ("Attention missed", "見落としたアテンションの割合"),
    "kpi.largest_gap": ("Largest gap between groups", "区分間の最大格差"),
    "kpi.shadow_disagreement": ("Difference of answers in shadow", "並行稼働での応答の差"),
    "kpi.canary_error_rate": ("Real requests that only the candidate failed", "候補のみ失敗した実要求の割合"),
    "kpi.canary_latency_ratio": (
        "Median latency of real requests, candidate ÷ in use",
        "実要求の推論時間の中央値（候補÷現行）",
    ),
    "kpi.selection_recall": ("Attention on the blocks read", "読み取ったブロックが占めるアテンションの割合"),
    "kpi.payback_days": ("Days until it has paid", "投資回収期間"),
    "unit.x": ("\N{NO-BREAK SPACE}×", "倍"),
    "unit.ms": ("\N{NO-BREAK SPACE}ms", "\N{NO-BREAK SPACE}ms"),
    "unit.MiB": ("\N{NO-BREAK SPACE}MiB", "\N{NO-BREAK SPACE}MiB"),
    "unit.d": ("\N{NO-BREAK SPACE}days", "日"),
    "unit.nat": ("\N{NO-BREAK SPACE}nat", "\N{NO-BREAK SPACE}nat"),
}
