//! The picture: answers per second by version over time, latency below it, every event marked.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::clock::{millis, seconds};
use super::statistics::quantile;
use super::story::Told;
use crate::load::{Outcome, Record};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const SIZE: (u32, u32) = (1100, 640);
/// Title and legend; then the rows of event labels.
const HEAD: i32 = 46;
const LABEL_ROW: i32 = 18;
const LABEL_ROWS: usize = 4;
const LATENCY_HEIGHT: u32 = 170;
const LEFT: u32 = 64;
const EDGE: u32 = 10;
const RIGHT: u32 = 40;
const BIN_US: u64 = 500_000;

const OLD: RGBColor = RGBColor(76, 120, 168);
const CANARY: RGBColor = RGBColor(245, 145, 40);
const FAILED: RGBColor = RGBColor(200, 30, 45);
const MEDIAN: RGBColor = RGBColor(84, 162, 75);
const TAIL: RGBColor = RGBColor(150, 100, 160);
const INK: RGBColor = RGBColor(45, 51, 59);
const FAINT: RGBColor = RGBColor(222, 226, 230);

/// What happened in one bin.
#[derive(Debug, Default)]
struct Bin {
    old: u64,
    canary: u64,
    failed: u64,
    latencies_us: Vec<u64>,
}

/// The bins, and the moment the first begins.
struct Series {
    origin_us: u64,
    bins: Vec<Bin>,
}

impl Series {
    /// By the time requests ended. The last bin is not whole, and left out.
    fn new(records: &[Record]) -> Option<Self> {
        let origin_us = records.iter().map(|record| record.started_us).min()?;
        let mut by_number: BTreeMap<u64, Bin> = BTreeMap::new();
        for record in records {
            let number = (record.ended_us - origin_us) / BIN_US;
            let bin = by_number.entry(number).or_default();
            match &record.outcome {
                Outcome::Ok { server, .. } if server == super::report::CANARY => bin.canary += 1,
                Outcome::Ok { .. } => bin.old += 1,
                Outcome::Status { .. } | Outcome::Broken { .. } | Outcome::Wrong { .. } => {
                    bin.failed += 1;
                }
            }
            bin.latencies_us.push(record.ended_us - record.started_us);
        }
        let (last, _) = by_number.pop_last()?;
        let mut bins: Vec<_> =
            (0..last).map(|number| by_number.remove(&number).unwrap_or_default()).collect();
        bins.iter_mut().for_each(|bin| bin.latencies_us.sort_unstable());
        Some(Self { origin_us, bins })
    }

    fn end_s(&self) -> f64 {
        self.time_s(self.bins.len())
    }

    fn time_s(&self, bin: usize) -> f64 {
        seconds(bin as u64 * BIN_US)
    }

    /// One point in the middle of each bin.
    fn points(&self, value: impl Fn(&Bin) -> f64) -> Vec<(f64, f64)> {
        let middle = seconds(BIN_US) / 2.0;
        let points = self.bins.iter().enumerate();
        points.map(|(number, bin)| (self.time_s(number) + middle, value(bin))).collect()
    }

    fn rates(&self, count: impl Fn(&Bin) -> u64) -> Vec<(f64, f64)> {
        self.points(|bin| per_second(count(bin)))
    }

    fn latencies_ms(&self, at: f64) -> Vec<(f64, f64)> {
        self.points(|bin| millis(quantile(&bin.latencies_us, at)))
    }
}

/// Draws the story to an SVG file.
pub(super) fn draw(told: &Told, path: &Path) -> anyhow::Result<()> {
    let series = Series::new(&told.records).context("no requests to draw")?;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // The backend's errors borrow from it.
    draw_on(&root, told, &series)
        .map_err(|error| anyhow::anyhow!("draw {}: {error}", path.display()))
}

type Drawn<'a> = Result<(), Box<dyn std::error::Error + 'a>>;

fn draw_on<'a>(root: &Area<'a>, told: &Told, series: &Series) -> Drawn<'a> {
    root.fill(&WHITE)?;
    let (rates, latency) = root.split_vertically(SIZE.1 - LATENCY_HEIGHT);
    let rates = draw_rates(&rates, series)?;
    let latency = draw_latency(&latency, series)?;
    draw_title(root)?;
    draw_marks(root, told, series, &rates, &latency)?;
    root.present()?;
    Ok(())
}

fn draw_title<'a>(root: &Area<'a>) -> Drawn<'a> {
    let title = ("sans-serif", 19).into_font().color(&INK);
    root.draw(&Text::new("Requests per second, by the version that answered", (16, 14), title))?;
    let legend = [("web-v1", OLD), ("web-v2", CANARY), ("failed", FAILED)];
    let style = ("sans-serif", 14).into_font().color(&INK);
    let mut x = pixels(SIZE.0) - 3 * 90;
    for (name, color) in legend {
        root.draw(&Rectangle::new([(x, 17), (x + 13, 30)], color.filled()))?;
        root.draw(&Text::new(name, (x + 19, 16), style.clone()))?;
        x += 90;
    }
    Ok(())
}

fn draw_rates<'a>(
    area: &Area<'a>,
    series: &Series,
) -> Result<Chart<'a>, Box<dyn std::error::Error + 'a>> {
    let labels = LABEL_ROW * i32::try_from(LABEL_ROWS)?;
    let answered = series.rates(|bin| bin.old + bin.canary);
    let all = series.rates(|bin| bin.old + bin.canary + bin.failed);
    let top = highest(&all) * 1.08;
    let mut chart = ChartBuilder::on(area)
        .margin_top(HEAD + labels)
        .margin_left(EDGE)
        .margin_right(RIGHT)
        .y_label_area_size(LEFT)
        .x_label_area_size(8)
        .build_cartesian_2d(0.0..series.end_s(), 0.0..top)?;
    draw_mesh(&mut chart, "requests/s", 5)?;
    for (points, color, opacity) in
        [(all, FAILED, 0.9), (answered, OLD, 0.55), (series.rates(|bin| bin.canary), CANARY, 0.75)]
    {
        // Underneath lies another colour: white first, so that none shines through.
        chart.draw_series(AreaSeries::new(points.clone(), 0.0, WHITE.filled()))?;
        let area = AreaSeries::new(points, 0.0, color.mix(opacity).filled());
        chart.draw_series(area.border_style(color.stroke_width(1)))?;
    }
    Ok(chart)
}

fn draw_latency<'a>(
    area: &Area<'a>,
    series: &Series,
) -> Result<Chart<'a>, Box<dyn std::error::Error + 'a>> {
    let tail = series.latencies_ms(0.99);
    let mut chart = ChartBuilder::on(area)
        .margin_top(12)
        .margin_left(EDGE)
        .margin_right(RIGHT)
        .margin_bottom(6)
        .y_label_area_size(LEFT)
        .x_label_area_size(42)
        .build_cartesian_2d(0.0..series.end_s(), 0.0..highest(&tail) * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .y_labels(4)
        .x_labels(14)
        .x_desc("seconds")
        .y_desc("latency, ms")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    for (points, color, name) in [(tail, TAIL, "p99"), (series.latencies_ms(0.5), MEDIAN, "p50")] {
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .legend_area_size(20)
        .label_font(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    Ok(chart)
}

fn draw_mesh<'a>(chart: &mut Chart<'a>, what: &str, labels: usize) -> Drawn<'a> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .x_labels(0)
        .y_labels(labels)
        .y_desc(what)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    Ok(())
}

/// A line through both charts for every event, and its label beside the line's upper end.
fn draw_marks<'a>(
    root: &Area<'a>,
    told: &Told,
    series: &Series,
    rates: &Chart<'a>,
    latency: &Chart<'a>,
) -> Drawn<'a> {
    let style = ("sans-serif", 13).into_font().color(&INK);
    let mut rows = LabelRows::default();
    for (at_us, label) in &told.marks {
        let at_s = seconds(at_us.saturating_sub(series.origin_us));
        let (x, _) = rates.plotting_area().map_coordinate(&(at_s, 0.0));
        let (_, bottom) = latency.plotting_area().map_coordinate(&(at_s, 0.0));
        let row = rows.place(x, x + label_width(label));
        let top = HEAD + LABEL_ROW * i32::try_from(row)?;
        let line = PathElement::new([(x, top), (x, bottom)], INK.mix(0.55).stroke_width(1));
        root.draw(&line)?;
        root.draw(&Text::new(*label, (x + 5, top), style.clone()))?;
    }
    Ok(())
}

/// Where each row's last label ends.
#[derive(Default)]
struct LabelRows([i32; LABEL_ROWS]);

impl LabelRows {
    /// The highest row from which a line goes down through no earlier label; the lowest row takes
    /// what has room nowhere. Events come from left to right.
    fn place(&mut self, from: i32, to: i32) -> usize {
        let taken = self.0.iter().rposition(|end| *end >= from);
        let row = taken.map_or(0, |row| row + 1).min(LABEL_ROWS - 1);
        self.0[row] = to;
        row
    }
}

/// Of a label at its size, with room around it; fonts differ a little.
fn label_width(label: &str) -> i32 {
    i32::try_from(label.len()).unwrap_or(0) * 6 + 10
}

fn highest(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(_, y)| *y).fold(1.0, f64::max)
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests, far below 2^52")]
fn per_second(count: u64) -> f64 {
    count as f64 / seconds(BIN_US)
}

fn pixels(length: u32) -> i32 {
    i32::try_from(length).expect("a picture is smaller than that")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_step_down_and_start_again_where_there_is_room() {
        let mut rows = LabelRows::default();
        let placed = [(10, 60), (40, 90), (50, 55), (80, 100), (200, 250)];
        // The fourth has room in the first row, but its line would cross the second's label.
        assert_eq!(placed.map(|(from, to)| rows.place(from, to)), [0, 1, 2, 2, 0]);
    }

    #[test]
    fn the_picture_shows_versions_and_events() {
        let record = |at: u64, server: &str| Record {
            id: String::new(),
            method: "GET".into(),
            started_us: at * 1000,
            ended_us: at * 1000 + 700,
            outcome: Outcome::Ok { server: server.into(), pod: String::new() },
        };
        let records =
            (0..3000).map(|at| record(at, if at % 10 == 0 { "web-v2" } else { "web-v1" }));
        let told = Told {
            records: records.collect(),
            marks: vec![(1_000_000, "split 50/50")],
            ..Told::default()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        draw(&told, file.path()).unwrap();
        let svg = std::fs::read_to_string(file.path()).unwrap();
        for expected in ["split 50/50", "web-v1", "web-v2", "p99", "requests/s", "</svg>"] {
            assert!(svg.contains(expected), "{expected} in {svg}");
        }
    }
}
