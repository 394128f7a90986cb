"""The rest of the catalogue: the sections below the KPI table."""

# ruff: noqa: RUF001 -- Japanese is written with its own punctuation

MESSAGES: dict[str, tuple[str, str]] = {
    # how good
    "good": ("How good, each by itself", "モデルごとの精度"),
    "good.intro": (
        "All on the same {n} windows of the part “{part}”; in brackets the {confidence} confidence interval.",
        "いずれも「{part}」期間の同じ{n}ウィンドウで評価した値です。括弧内は{confidence}信頼区間です。",
    ),
    "good.subject": ("Model", "モデル"),
    # trade-off
    "tradeoff": ("What each budget is worth and costs", "読み取り率と精度・推論時間・メモリのトレードオフ"),
    "tradeoff.intro": (
        "The budget is the share of blocks that are read exactly; one set of weights serves them all. "
        "Measured on {windows} validation windows, {timings} inferences each, {steps} steps, {machine}.",
        "読み取り率とは、個別に読み取るブロックの割合です。1組の重みですべての読み取り率に対応します。検証用{windows}ウィンドウ、"
        "各{timings}回の推論、系列長{steps}で測定しました（{machine}）。",
    ),
    "tradeoff.none": (
        "The budgets of this model were not measured in this run.",
        "今回の実行では、読み取り率ごとの測定を行っていません。",
    ),
    "tradeoff.dense": (
        "The model is dense and reads every block: it has no budget to choose.",
        "このモデルは全ブロックを読み取る密モデルのため、選択できる読み取り率はありません。",
    ),
    "tradeoff.legend": (
        "Up is more accurate, left is cheaper. The diamond on the zero line is dense, the chosen budget is "
        "ringed, the dashed line is the simple baseline (against dense on the test windows).",
        "上ほど高精度、左ほど低コストです。基準線（0）上のひし形は密モデル、二重丸は採用した読み取り率、破線は簡易モデル"
        "（テスト用ウィンドウでの密モデルとの差）です。",
    ),
    "tradeoff.older": (
        "The dense model is the one of the rollout, trained on earlier data: part of the difference is the "
        "newer data. Compare the budgets with one another.",
        "比較対象の密モデルは導入時のもので、学習データが古いため、差にはデータの新しさの影響が含まれます。"
        "読み取り率どうしの比較としてご覧ください。",
    ),
    "tradeoff.text": (
        "Each point: {windows} windows, {timings} inferences.",
        "各点は{windows}ウィンドウ、{timings}回の推論による値です。",
    ),
    "tradeoff.latency": ("Accuracy against latency", "精度と推論時間"),
    "tradeoff.memory": ("Accuracy against memory", "精度とメモリ使用量"),
    "tradeoff.budget": ("Budget (blocks read)", "読み取り率（個別に読むブロックの割合）"),
    "tradeoff.blocks": ("Blocks read per query block", "1ブロックあたりの読み取り数"),
    "tradeoff.metric": ("{kpi} ({n} windows)", "{kpi}（{n}ウィンドウ）"),
    "tradeoff.gain": ("Difference from dense, % of its {kpi}", "密モデルとの差（{kpi}比、%）"),
    "tradeoff.p50": ("Median latency, ms", "推論時間の中央値（ms）"),
    "tradeoff.p90": ("90th percentile, ms", "90パーセンタイル（ms）"),
    "tradeoff.peak": ("Peak memory, MiB", "最大メモリ使用量（MiB）"),
    "tradeoff.role.sparse": ("other budgets", "その他の読み取り率"),
    "tradeoff.role.chosen": ("chosen budget", "採用した読み取り率"),
    "tradeoff.role.dense": ("dense", "密モデル"),
    # scaling
    "scaling": ("How cost grows with the length of the sequence", "系列長とコスト"),
    "scaling.intro": (
        "Dense reads every block, sparse only those it selects. Both took turns in fresh processes, one "
        "sequence at a time, on {machine}. Bars show the middle 90% where there were at least {least} "
        "inferences.",
        "密モデルは全ブロックを、疎モデルは選択したブロックのみを読み取ります。それぞれ新しいプロセスで交互に、"
        "1系列ずつ計測しました（{machine}）。推論が{least}回以上の場合は、中央90%の範囲を棒で示します。",
    ),
    "scaling.none": (
        "Latency and memory by length were not measured in this run.",
        "今回の実行では、系列長ごとの推論時間とメモリ使用量を測定していません。",
    ),
    "scaling.latency": ("Latency by length", "系列長ごとの推論時間"),
    "scaling.memory": ("Peak memory by length", "系列長ごとの最大メモリ使用量"),
    "scaling.text": (
        "Both axes are logarithmic; lower is cheaper. By length: {n}.",
        "両軸とも対数目盛で、下ほど低コストです（系列長別：{n}）。",
    ),
    "scaling.steps": ("Steps of the sequence", "系列長（ステップ数）"),
    "scaling.ms": ("Median latency, ms", "推論時間の中央値（ms）"),
    "scaling.side": ("Model", "モデル"),
    "scaling.side.candidate": ("sparse", "疎モデル"),
    "scaling.side.dense": ("dense", "密モデル"),
    "scaling.ratio": ("Latency ratio [interval]", "推論時間の比［信頼区間］"),
    "scaling.memory_ratio": ("Memory ratio", "メモリ使用量の比"),
    "scaling.n": ("Inferences", "推論回数"),
    # what the model looks at
    "looks": ("What the model looks at", "モデルが参照した箇所"),
    "looks.intro": (
        "The best, a typical and the worst window, chosen by the loss of each alone. Shaded blocks were read "
        "step by step, the darker the more attention they got; everything else was read as summaries. "
        "Triangles mark the steps that got the most attention. Drag or use the buttons to move, Ctrl + wheel "
        "to zoom.",
        "ウィンドウごとの誤差で選んだ、最良・標準的・最悪の3例です。網掛けはステップ単位で読み取ったブロックで、濃いほど"
        "アテンション（注目度）が高いことを示します。それ以外は要約として読み取っています。三角印はアテンションが特に高い"
        "ステップです。ドラッグまたはボタンで移動、Ctrl＋ホイールで拡大・縮小できます。",
    ),
    "looks.none": (
        "No window was explained in this run: the outcomes of its windows are not known, or nothing was "
        "scored.",
        "今回の実行では、参照箇所の分析を行っていません（実績が未確定、または評価対象がないため）。",
    ),
    "looks.which.best": ("Best window", "最良のウィンドウ"),
    "looks.which.typical": ("Typical window", "標準的なウィンドウ"),
    "looks.which.worst": ("Worst window", "最悪のウィンドウ"),
    "looks.heading": ("{which}: {measure} {loss}", "{which}：{measure} {loss}"),
    "looks.measure.log_loss": ("log loss", "対数損失"),
    "looks.measure.mse": ("squared error", "二乗誤差"),
    "looks.measure.rank_error": ("distance of ranks from labels", "順位とラベルの差"),
    "looks.about": (
        "Everything up to {cutoff} was seen ({entity}; one of {n} windows). {exact} of the attention went to "
        "steps that were read exactly, {rest} to summaries.",
        "{cutoff}までのデータを入力しています（系列：{entity}、全{n}ウィンドウから選択）。アテンションの内訳は、"
        "個別に読み取ったステップが{exact}、要約が{rest}です。",
    ),
    "looks.read": ("Blocks read: {name}", "読み取ったブロック：{name}"),
    "looks.read.text": (
        "{n} steps. Lines and dots are the values that the model knew, shaded bands the blocks read.",
        "{n}ステップ。線と点はモデルに与えた値、帯は読み取ったブロックです。",
    ),
    "looks.events": ("Blocks read", "読み取ったブロック"),
    "looks.time": ("Time", "時刻"),
    "looks.value": ("Value", "値"),
    "looks.mass": ("Attention", "アテンション"),
    "looks.read_by": ("Heads that read it exactly", "個別に読み取ったヘッドの割合"),
    "looks.from": ("From", "開始"),
    "looks.to": ("To", "終了"),
    "looks.steps": ("Steps with the most attention", "アテンションが特に高いステップ"),
    "looks.known": (
        "Columns as the model knew them (? = not known then)",
        "モデルに与えた値（?は当時未知）",
    ),
    "looks.answer": ("What it said, and what came", "予測と実績"),
    "looks.answer.event": (
        "Predicted chance of “{name}” for each of {n} steps; filled marks are steps where it came true.",
        "{n}ステップそれぞれの「{name}」の予測確率です。塗りつぶしの印は実際に発生したステップです。",
    ),
    "looks.answer.forecast": (
        "“{name}” in standard deviations, {n} steps: predicted (solid) and what came (dashed).",
        "「{name}」の予測値（実線）と実績値（破線）です（{n}ステップ、標準偏差で正規化）。",
    ),
    "looks.answer.detect": (
        "How far each of {n} steps was from what the model expected; filled marks are labelled “{name}”.",
        "{n}ステップそれぞれの異常度（モデルの想定からの外れ具合）です。塗りつぶしの印は「{name}」のステップです。",
    ),
    "looks.said": ("Said", "予測"),
    "looks.came": ("Came true", "実績"),
    "looks.zoom_in": ("Zoom in", "拡大"),
    "looks.zoom_out": ("Zoom out", "縮小"),
    "looks.earlier": ("Earlier", "前へ"),
    "looks.later": ("Later", "後へ"),
    "looks.reset": ("Whole window", "全体を表示"),
    "looks.zoom": ("Zoom and move: {name}", "拡大・移動：{name}"),
    # slices
    "slices": ("Is it fair to every group?", "区分ごとの差"),
    "slices.intro": (
        "Each group by itself; n is the number of windows that inform the metric there. A group that is too "
        "small for a verdict is drawn hollow. The dashed mark is the threshold, where one was asked.",
        "区分ごとの値です。nは指標の計算に使えたウィンドウ数です。判定に必要な数に満たない区分は白抜きで示します。"
        "破線の印は、設定がある場合のしきい値です。",
    ),
    "slices.none": (
        "No slice column is declared for this dataset, or groups were not measured in this run.",
        "データ定義に区分の列がないか、今回の実行では区分ごとの測定を行っていません。",
    ),
    "slices.of": (
        "{kpi} by {column}, difference from {reference}",
        "{column}別の{kpi}（{reference}との差）",
    ),
    "slices.alone": ("{kpi} by {column}", "{column}別の{kpi}"),
    "slices.difference": ("{kpi}, difference", "{kpi}の差"),
    "slices.group": ("Group", "区分"),
    "slices.small": ("too small to judge", "判定対象外"),
    "slices.judged": ("judged", "判定対象"),
    "slices.status": ("Status", "扱い"),
    "slices.text": ("Dots are values, bars confidence intervals.", "点は値、横棒は信頼区間です。"),
    "slices.gap": ("Gap between the best and the worst group", "最良の区分と最悪の区分の格差"),
    "slices.only": (
        "The {shown} groups with the most windows of {all} are drawn; the table has all.",
        "全{all}区分のうち、ウィンドウ数の多い{shown}区分を図示しています（表には全区分を掲載）。",
    ),
    # drift
    "drift": ("Drift over time, and the retrainings", "ドリフト（データ傾向の変化）と再学習の推移"),
    "drift.intro": (
        "How good the live model was, and how far the data was from what it knows, in order of time.",
        "稼働モデルの精度と、学習時からのデータ傾向の変化を時系列で示します。",
    ),
    "drift.none": (
        "Nothing was monitored yet: no month or batch was looked at.",
        "監視の記録はまだありません。",
    ),
    "drift.metric": ("{kpi} of the live model", "稼働モデルの{kpi}"),
    "drift.metric.text": (
        "Dots with confidence intervals ({n} windows each); the mark says what was decided, dotted lines "
        "are trainings and what came of them.",
        "点は値、縦棒は信頼区間です（各{n}ウィンドウ）。印の形は判断の内容、縦の点線は再学習とその結果を示します。",
    ),
    "drift.strength": ("Strongest drift of each kind", "種類別の最も強いドリフト"),
    "drift.strength.text": (
        "In multiples of its limit, which is the dashed line; {n} rows each.",
        "許容上限に対する倍率です。破線が上限を示します（各{n}行）。",
    ),
    "drift.period": ("Period", "期間"),
    "drift.decision": ("Decision", "判断"),
    "drift.decision.none": ("nothing to do", "対応不要"),
    "drift.decision.watch": ("watch", "経過観察"),
    "drift.decision.retrain": ("retrain", "再学習"),
    "drift.decision.fault": ("data fault", "データ異常"),
    "drift.decision.": ("–", "－"),
    "drift.kind": ("Kind", "種類"),
    "drift.kind.inputs": ("inputs", "入力"),
    "drift.kind.outcomes": ("outcomes", "結果（正解ラベル）"),
    "drift.kind.relations": ("relations", "列間の関係"),
    "drift.kind.predictions": ("predictions", "予測値"),
    "drift.kind.selection": ("blocks read", "読み取るブロック"),
    "drift.limit": ("Multiple of the limit", "許容上限に対する倍率"),
    "drift.subject": ("What", "対象"),
    "drift.measure": ("Measure", "尺度"),
    "drift.measure.shift": ("shift, standard deviations", "平均のずれ（標準偏差）"),
    "drift.measure.spread": ("spread, log ratio", "ばらつき（対数比）"),
    "drift.measure.missing": ("missing, share of rows", "欠損（行の割合）"),
    "drift.measure.shares": ("categories, share of rows", "構成比（行の割合）"),
    "drift.measure.rate": ("how often it happens, standard deviations", "発生率のずれ（標準偏差）"),
    "drift.measure.level": (
        "level beside the other columns, standard deviations",
        "他の列から見た水準のずれ（標準偏差）",
    ),
    "drift.measure.scatter": ("own variation, log ratio", "固有の変動（対数比）"),
    "drift.measure.relation": ("rank correlation", "順位相関"),
    "drift.measure.lags": ("lags, share of reads", "参照距離（割合）"),
    "drift.measure.entropy": ("evenness of reads", "参照の偏り"),
    "drift.measure.missed": ("attention missed", "見落としたアテンション"),
    "drift.usual": ("Usual", "通常の変動"),
    "drift.noted": ("What moved, strongest first", "変化の大きい項目（強い順）"),
    "drift.event": ("What followed", "その後"),
    "drift.event.": ("–", "－"),
    "drift.event.trained": ("retrained", "再学習を実施"),
    "drift.event.promoted": ("retrained, new model live", "再学習・モデル切り替え"),
    "drift.event.held": ("retrained, held", "再学習・保留"),
    "drift.event.dropped": ("retrained, dropped", "再学習・不採用"),
    "drift.event.refused": ("retraining refused", "再学習を見送り"),
    "drift.event.unfinished": ("retraining unfinished", "再学習が未完了"),
    "drift.event.rolled_back": ("rolled back", "切り戻し"),
    "moved.performance": (
        "{kpi} changed by {change}, from {before}",
        "{kpi}の変化：{change}（導入時は{before}）",
    ),
    "moved.estimate": (
        "{kpi} is estimated at {value}, from {before}; the outcomes are not known yet",
        "{kpi}の推定値は{value}（導入時{before}、実績は未確定）",
    ),
    "moved.effect": (
        "{subject} ({kind}): {measure}, {strength} times its limit",
        "{subject}（{kind}）：{measure}、許容上限の{strength}倍",
    ),
    "moved.nothing": (
        "Nothing moved far, or for long.",
        "大きく、または長く変化している項目はありません。",
    ),
    "drift.table": ("Periods", "期間別の記録"),
    "drift.this": ("this run", "今回"),
    # cost
    "payback": ("Does it pay, and what does that hang on?", "投資対効果"),
    "payback.none": (
        "Payback was not measured in this run: it takes latency and memory of both sides.",
        "今回の実行では投資回収期間を算出していません（両モデルの推論時間とメモリ使用量の測定が必要です）。",
    ),
    "payback.dense": (
        "A dense model saves nothing beside a dense one: there is nothing to pay back.",
        "密モデルどうしでは推論コストが変わらないため、投資回収の対象になりません。",
    ),
    "payback.yes": (
        "The change pays for itself in {days} days ({low} to {high} at {confidence} confidence).",
        "投資回収期間は{days}日です（{confidence}信頼区間：{low}～{high}日）。",
    ),
    "payback.years": (
        "That is about {years} years.",
        "約{years}年に相当します。",
    ),
    "payback.no": ("The change does not pay for itself.", "投資を回収できない見込みです。"),
    "payback.examples": (
        "The prices are the shipped examples: put in your own before you rely on this.",
        "単価は同梱の例です。判断に使う前に、自社の単価を設定してください。",
    ),
    "payback.saved": ("Saved per request", "1要求あたりの短縮時間"),
    "payback.saved_day": ("Saved per day", "1日あたりの削減額"),
    "payback.devices": ("Devices saved", "削減できる機器の台数"),
    "payback.upfront": ("Cost at the start", "初期費用"),
    "payback.answer": ("Days until it has paid", "投資回収期間（日）"),
    "payback.item": ("Item", "項目"),
    "payback.amount": ("Amount", "値"),
    "payback.inputs": ("What it is calculated from", "算出の内訳"),
    "payback.sensitivity": (
        "When one input is half or twice as large",
        "感度分析（各条件を半分・2倍にした場合）",
    ),
    "payback.text": (
        "Days until it has paid, on a logarithmic scale, from {n} timings of each side; the dashed line is "
        "the answer above. What never pays is not drawn.",
        "投資回収期間（日数、対数目盛）です。両モデル各{n}回の計測から算出しました。縦の破線は現在の条件での値です。"
        "回収不可の場合は描画していません。",
    ),
    "payback.varied": ("Input", "条件"),
    "payback.half": ("Half", "半分"),
    "payback.now": ("As it is", "現状"),
    "payback.twice": ("Twice", "2倍"),
    "payback.factor": ("Input is", "条件の倍率"),
    "payback.days": ("Days", "日数"),
    "payback.varied.price_per_hour": ("price of an hour", "1時間の単価"),
    "payback.varied.requests_per_day": ("requests a day", "1日の要求数"),
    "payback.varied.engineering_cost": ("engineering cost", "導入の人件費"),
    "payback.varied.price_per_device": ("price of a device", "機器の単価"),
    "payback.varied.seconds_saved": ("seconds saved", "短縮時間"),
    # lineage
    "lineage": ("Where it comes from", "来歴"),
    "lineage.intro": (
        "Each step is named by the SHA-256 of its content. Links to files work where the page lies.",
        "各項目は内容のSHA-256ハッシュで識別しています。ファイルへのリンクは、このページが元の場所にある場合に有効です。",
    ),
    "lineage.step": ("Step", "項目"),
    "lineage.id": ("Identity", "識別子"),
    "lineage.link": ("Link", "リンク"),
    "lineage.snapshot": ("Data", "データ"),
    "lineage.snapshot.about": ("{rows} rows, {start} to {end}", "{rows}行、{start}～{end}"),
    "lineage.docs": ("Data Docs", "データ検証レポート"),
    "lineage.run": ("Run", "実行"),
    "lineage.training": ("Training run", "学習の実行"),
    "lineage.checkpoint": ("Checkpoint", "学習済みモデル（チェックポイント）"),
    "lineage.verdict": ("Verdict", "判定"),
    "lineage.policy": ("Policy", "判定基準"),
    "lineage.bundle": ("Edge bundle", "エッジ配布物"),
    "lineage.code": ("Code", "ソースコード"),
    "lineage.none": ("none in this run", "今回は該当なし"),
    "lineage.in_mlflow": ("open in MLflow (dankai ui)", "MLflowで開く（dankai ui）"),
    "lineage.files": ("open", "開く"),
}
