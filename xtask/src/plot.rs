//! Plots of measurements, as SVG: bars for figures side by side, lines for what grows.

use std::{fmt::Display, ops::Range, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::Result;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Told apart by those who do not see all colours as well (Okabe and Ito), and on paper.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(90, 90, 90),
    RGBColor(150, 130, 10),
];

const FONT: &str = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(36, 41, 47);
const FAINT: RGBColor = RGBColor(222, 226, 230);
const MUTED: RGBColor = RGBColor(101, 109, 118);

const WIDTH: i32 = 960;
const MARGIN: i32 = 24;
const TITLE_HEIGHT: i32 = 52;
const TITLE_SIZE: i32 = 20;
const TEXT_SIZE: i32 = 14;
const BAR_HEIGHT: i32 = 16;
const LINE_HEIGHT: i32 = 24;

/// Horizontal bars, a group for each row with one bar for each series, and the value at each bar.
/// A value that is no number is left out.
pub fn bars(
    path: &Path,
    title: &str,
    unit: &str,
    series: &[&str],
    rows: &[(String, Vec<f64>)],
    log: bool,
) -> Result<()> {
    let values = || rows.iter().flat_map(|(_, values)| values.iter().copied().filter(shown(log)));
    if values().next().is_none() {
        return Err(format!("the plot {title:?} has nothing to show").into());
    }
    let scale = Scale::over(values(), log);
    let group = length(series.len().max(1)) * BAR_HEIGHT + 12;
    let legend = if series.len() > 1 { LINE_HEIGHT } else { 0 };
    let left = MARGIN + rows.iter().map(|(label, _)| width(label)).max().unwrap_or(0) + 10;
    // The longest bar has its value behind it.
    let right = WIDTH - MARGIN - width(&figure(scale.end)) - 16;
    if right - left < 200 {
        return Err(format!("the plot {title:?} has labels too long to leave room for bars").into());
    }
    let top = TITLE_HEIGHT + legend;
    let bottom = top + length(rows.len()) * group;
    let height = bottom + 2 * LINE_HEIGHT + 16;

    let area = begin(path, height, title)?;
    let place = |value: f64| left + pixels(scale.share(value) * f64::from(right - left));
    for tick in scale.ticks() {
        let x = place(tick);
        area.draw(&PathElement::new([(x, top), (x, bottom)], FAINT))?;
        write(&area, figure(tick), (x, bottom + 14), HPos::Center, MUTED)?;
    }
    let axis = if log { format!("{unit} (logarithmic)") } else { unit.to_owned() };
    let middle = i32::midpoint(left, right);
    write(&area, &axis, (middle, bottom + 14 + LINE_HEIGHT), HPos::Center, MUTED)?;
    for (number, (label, values)) in rows.iter().enumerate() {
        let from = top + length(number) * group + 6;
        write(&area, label, (left - 10, from + (group - 12) / 2), HPos::Right, INK)?;
        for (bar, value) in values.iter().copied().enumerate().filter(|(_, v)| shown(log)(v)) {
            let y = from + length(bar) * BAR_HEIGHT;
            let end = place(value);
            let corners = [(left, y + 1), (end.max(left + 1), y + BAR_HEIGHT - 1)];
            area.draw(&Rectangle::new(corners, colour(bar).filled()))?;
            write(&area, figure(value), (end + 6, y + BAR_HEIGHT / 2), HPos::Left, INK)?;
        }
    }
    area.draw(&PathElement::new([(left, top), (left, bottom)], MUTED))?;
    if series.len() > 1 {
        let mut x = left;
        for (number, name) in series.iter().enumerate() {
            let y = TITLE_HEIGHT + 4;
            area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], colour(number).filled()))?;
            write(&area, name, (x + 18, y), HPos::Left, INK)?;
            x += 18 + width(name) + 24;
        }
    }
    Ok(area.present()?)
}

/// Lines with a mark at each point, both axes logarithmic. Points that have no logarithm are left
/// out.
pub fn lines(
    path: &Path,
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[(String, Vec<(f64, f64)>)],
) -> Result<()> {
    let kept = |(x, y): &&(f64, f64)| shown(true)(x) && shown(true)(y);
    let points = || series.iter().flat_map(|(_, points)| points.iter().filter(kept));
    if points().next().is_none() {
        return Err(format!("the plot {title:?} has nothing to show").into());
    }
    let names = series.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let height = 560;
    let area = begin(path, height, title)?;
    let (_, below) = area.split_vertically(TITLE_HEIGHT);
    let (chart, legend) = below.split_horizontally(WIDTH - MARGIN - names - 40);
    let mut chart = ChartBuilder::on(&chart)
        .margin(8)
        .margin_left(MARGIN)
        .margin_bottom(20)
        .x_label_area_size(2 * LINE_HEIGHT)
        .y_label_area_size(64)
        .build_cartesian_2d(
            around(points().map(|(x, _)| *x)).log_scale(),
            around(points().map(|(_, y)| *y)).log_scale(),
        )?;
    let text = || (FONT, TEXT_SIZE).into_font().color(&MUTED);
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(MUTED)
        .x_desc(x_label)
        .y_desc(y_label)
        .x_label_formatter(&|x| figure(*x))
        .y_label_formatter(&|y| figure(*y))
        .label_style(text())
        .axis_desc_style(text())
        .draw()?;
    for (number, (_, points)) in series.iter().enumerate() {
        let style = colour(number).stroke_width(2);
        let points = || points.iter().filter(kept).copied();
        chart.draw_series(LineSeries::new(points(), style))?;
        chart.draw_series(points().map(|point| Circle::new(point, 4, colour(number).filled())))?;
    }
    // As the lines end: highest first.
    let last = |number: &usize| series[*number].1.last().map_or(f64::NAN, |(_, y)| *y);
    let mut order: Vec<_> = (0..series.len()).collect();
    order.sort_by(|a, b| last(b).total_cmp(&last(a)));
    for (line, number) in order.into_iter().enumerate() {
        let y = 24 + length(line) * LINE_HEIGHT;
        let style = colour(number).stroke_width(2);
        legend.draw(&PathElement::new([(4, y), (28, y)], style))?;
        legend.draw(&Circle::new((16, y), 4, colour(number).filled()))?;
        write(&legend, &series[number].0, (36, y), HPos::Left, INK)?;
    }
    Ok(area.present()?)
}

fn begin<'a>(path: &'a Path, height: i32, title: &str) -> Result<Area<'a>> {
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    let style = (FONT, TITLE_SIZE).into_font().style(FontStyle::Bold).color(&INK);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(title.to_owned(), (MARGIN, 26), style))?;
    Ok(area)
}

fn write(
    area: &Area<'_>,
    text: impl Display,
    at: (i32, i32),
    side: HPos,
    colour: RGBColor,
) -> Result<()> {
    let style = (FONT, TEXT_SIZE).into_font().color(&colour).pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(text.to_string(), at, style))?)
}

fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// Pixels that a text takes at most; the viewer's font is not known here.
fn width(text: &str) -> i32 {
    length(text.chars().count()) * TEXT_SIZE * 62 / 100
}

fn length(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "a share of the plot's width")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

fn shown(log: bool) -> impl Fn(&f64) -> bool {
    move |value| value.is_finite() && if log { *value > 0.0 } else { *value >= 0.0 }
}

/// Three digits, and no more zeros than needed: `0.52`, `26.9`, `660`, `12.3k`, `1M`.
pub fn figure(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{suffix}")
}

/// A little more than all values, for a logarithmic axis.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = bounds(values);
    least / 1.3..most * 1.3
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

/// The axis of values.
struct Scale {
    start: f64,
    end: f64,
    log: bool,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let (least, most) = bounds(values);
        match log {
            // From the power of ten below, so that the shortest bar is a bar.
            true => Self { start: 10_f64.powf((least / 1.5).log10().floor()), end: most, log },
            false => Self { start: 0.0, end: if most > 0.0 { most } else { 1.0 }, log },
        }
    }

    /// How far along the axis a value lies, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.start).log10() / (self.end / self.start).log10(),
            false => value / self.end,
        }
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.log {
            let mut tick = self.start;
            while tick <= self.end {
                ticks.push(tick);
                tick *= 10.0;
            }
        } else {
            // 1, 2 or 5 times a power of ten, four to nine of them.
            let power = 10_f64.powf((self.end / 4.0).log10().floor());
            let step = [5.0, 2.0, 1.0].map(|times| times * power);
            let step = step.into_iter().find(|step| self.end / step >= 4.0).unwrap_or(power);
            let mut tick = 0.0;
            while tick <= self.end {
                ticks.push(tick);
                tick += step;
            }
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let texts = [0.0, 0.5234, 26.94, 660.4, 9999.0, 12_345.0, 1e6, 2.5e9].map(figure);
        assert_eq!(texts, ["0", "0.523", "26.9", "660", "9999", "12.3k", "1M", "2.5G"]);
    }

    #[test]
    fn ticks_are_round_numbers_within_the_scale() {
        let scale = Scale::over([3.0, 97.0].into_iter(), false);
        assert_eq!(scale.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        let scale = Scale::over([30.0, 970.0].into_iter(), true);
        assert_eq!(scale.ticks(), [10.0, 100.0]);
        assert!((scale.share(10.0), scale.share(970.0)) == (0.0, 1.0));
    }

    #[test]
    fn a_bar_has_its_value_and_what_is_no_number_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bars.svg");
        let rows =
            [("cni_add".to_owned(), vec![4.1, 9.8]), ("cni_del".to_owned(), vec![2.2, f64::NAN])];
        bars(&path, "Work & peers", "ms", &["podwire", "ptp"], &rows, false).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        for text in
            ["cni_add", "cni_del", "podwire", "ptp", "4.1", "9.8", "2.2", "ms", "Work &amp; peers"]
        {
            assert!(svg.lines().any(|line| line.trim() == text), "{text} is not in {svg}");
        }
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_plot_of_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nothing.svg");
        let rows = [("a".to_owned(), vec![f64::NAN])];
        let error = bars(&path, "t", "ns", &["s"], &rows, true).unwrap_err().to_string();
        assert_eq!(error, "the plot \"t\" has nothing to show");
        let series = [("a".to_owned(), vec![(0.0, 1.0)])];
        assert!(lines(&path, "t", "x", "y", &series).is_err());
    }

    #[test]
    fn every_series_has_its_line_and_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.svg");
        let series = [
            ("hash16".to_owned(), vec![(100.0, 27.0), (1e6, 80.0)]),
            ("lpm4".to_owned(), vec![(100.0, 60.0), (1e6, 1800.0)]),
        ];
        lines(&path, "Lookups", "entries", "ns", &series).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        // A mark at each point, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 4 + 2);
        assert!(svg.contains("hash16") && svg.contains("lpm4"), "{svg}");
    }
}
