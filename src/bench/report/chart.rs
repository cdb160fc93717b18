//! Charts as SVG text: lines, bars and percentile ranges. No script, no font, nothing from elsewhere; colours are the
//! page's classes, and no series is told from another by colour alone: lines have a marker, a dash pattern and their
//! name at the end, bars and ranges have their name beside them.

use std::fmt::Write;

use super::{figure, micros};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// Where the plot begins and ends; names of lines stand to the right of it.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 286.0;
/// Between names of lines, so that they do not lie on each other.
const NAME_STEP: f64 = 16.0;
/// Height of a bar or a range, and of a group's headline.
const BAR: f64 = 20.0;
const HEADLINE: f64 = 24.0;
/// Classes `s0` to `s7` of the page.
pub(super) const STYLES: usize = 8;
/// Values further apart than this are drawn on a logarithmic axis.
const SPAN_MAX: f64 = 30.0;

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    /// Index of class, marker and dash pattern.
    pub(super) style: usize,
    /// Ascending in x.
    pub(super) points: Vec<(f64, f64)>,
}

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) style: usize,
    pub(super) value: f64,
    /// What stands behind it.
    pub(super) label: String,
}

/// Percentiles of one server, microseconds.
pub(super) struct Range {
    pub(super) name: String,
    pub(super) style: usize,
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

/// What an axis shows.
pub(super) struct Axis<'a> {
    pub(super) title: &'a str,
    /// Of a value on it.
    pub(super) label: &'a dyn Fn(f64) -> String,
}

/// For HTML text and attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Opens an image that says in words what it shows.
fn open(out: &mut String, id: &str, height: f64, title: &str, words: &str) {
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
         <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n",
        escape(title),
        escape(words)
    );
}

fn text(out: &mut String, class: &str, x: f64, y: f64, anchor: &str, what: &str) {
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(what)
    );
}

/// Lines over an x axis whose values stand where they are measured, evenly apart: settings, not a scale.
pub(super) fn lines(id: &str, title: &str, x: &Axis<'_>, y: &Axis<'_>, series: &[Series]) -> String {
    let mut places: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|point| point.0)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let values: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|point| point.1)).collect();
    let scale = Scale::of(&values, BOTTOM, TOP);
    let step = (RIGHT - LEFT - 40.0) / (places.len().max(2) - 1) as f64;
    let x_of =
        |value: f64| LEFT + 20.0 + step * places.iter().position(|place| *place == value).unwrap_or(0) as f64;

    let mut words = String::new();
    for line in series {
        let points =
            line.points.iter().map(|(at, value)| format!("{} at {}", (y.label)(*value), (x.label)(*at)));
        let _ = write!(words, "{}: {}. ", line.name, points.collect::<Vec<_>>().join(", "));
    }
    let mut out = String::new();
    open(&mut out, id, HEIGHT, title, words.trim());
    for tick in scale.ticks() {
        let at = scale.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
        );
        text(&mut out, "tick", LEFT - 8.0, at + 4.0, "end", &tick_label(tick));
    }
    for place in &places {
        text(&mut out, "tick", x_of(*place), BOTTOM + 18.0, "middle", &(x.label)(*place));
    }
    let logarithmic = if scale.logarithmic { ", logarithmic" } else { "" };
    text(
        &mut out,
        "axis",
        LEFT,
        HEIGHT - 10.0,
        "start",
        &format!("across: {}; up: {}{logarithmic}", x.title, y.title),
    );

    let mut names: Vec<(f64, usize)> = Vec::new();
    for (index, line) in series.iter().enumerate() {
        let place = |point: &(f64, f64)| (x_of(point.0), scale.at(point.1));
        let path: Vec<String> =
            line.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let style = line.style % STYLES;
        let _ = writeln!(out, "<polyline class=\"line s{style} d{style}\" points=\"{}\"/>", path.join(" "));
        for (x, y) in line.points.iter().map(place) {
            marker(&mut out, style, x, y);
        }
        names.extend(line.points.last().map(|point| (scale.at(point.1), index)));
    }
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = f64::NEG_INFINITY;
    let overhang = (names.len() as f64 * NAME_STEP - (BOTTOM - TOP)).max(0.0);
    for (at, index) in names {
        let y = at.max(free).max(TOP - overhang);
        free = y + NAME_STEP;
        let style = series[index].style % STYLES;
        let _ = writeln!(
            out,
            "<polyline class=\"line s{style} d{style}\" points=\"{:.1},{at:.1} {:.1},{y:.1} {:.1},{y:.1}\"/>",
            RIGHT - 14.0,
            RIGHT + 2.0,
            RIGHT + 12.0
        );
        marker(&mut out, style, RIGHT + 16.0, y);
        text(&mut out, "name", RIGHT + 26.0, y + 4.0, "start", &series[index].name);
    }
    out.push_str("</svg>\n");
    out
}

/// Bars from zero, in groups with a headline.
pub(super) fn bars(id: &str, title: &str, unit: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let greatest =
        groups.iter().flat_map(|group| group.1.iter().map(|bar| bar.value)).fold(f64::MIN_POSITIVE, f64::max);
    let (left, right) = (150.0, WIDTH - 190.0);
    let height = groups.iter().map(|group| HEADLINE + BAR * group.1.len() as f64 + 8.0).sum::<f64>() + 8.0;
    let mut words = String::new();
    for (name, bars) in groups {
        let bars: Vec<String> = bars.iter().map(|bar| format!("{} {}", bar.name, bar.label)).collect();
        let _ = write!(words, "{name}: {}. ", bars.join(", "));
    }
    let mut out = String::new();
    open(&mut out, id, height, &format!("{title} ({unit})"), words.trim());
    let mut y = 8.0;
    for (name, bars) in groups {
        text(&mut out, "headline", 0.0, y + 14.0, "start", name);
        y += HEADLINE;
        // Each group has a scale of its own where one would make its bars invisible.
        let own = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let scale = if own * SPAN_MAX < greatest { own } else { greatest };
        for bar in bars {
            let len = (bar.value / scale * (right - left)).max(1.0);
            text(&mut out, "name", left - 8.0, y + 13.0, "end", &bar.name);
            let _ = writeln!(
                out,
                "<rect class=\"bar f{}\" x=\"{left}\" y=\"{:.1}\" width=\"{len:.1}\" height=\"{}\" rx=\"2\"/>",
                bar.style % STYLES,
                y + 2.0,
                BAR - 5.0
            );
            text(&mut out, "value", left + len + 6.0, y + 13.0, "start", &bar.label);
            y += BAR;
        }
        y += 8.0;
    }
    out.push_str("</svg>\n");
    out
}

/// Percentiles on one logarithmic axis of time: a line from the median to the maximum, with marks at 50, 90 and 99 %.
pub(super) fn ranges(id: &str, title: &str, groups: &[(String, Vec<Range>)]) -> String {
    let all = || groups.iter().flat_map(|group| &group.1);
    let values: Vec<f64> =
        all().flat_map(|range| [range.p50.max(1) as f64, range.max.max(1) as f64]).collect();
    let (left, right) = (150.0, WIDTH - 130.0);
    let scale = Scale { logarithmic: true, ..Scale::of(&values, left, right) }.to_decades(&values);
    let height = groups.iter().map(|group| HEADLINE + BAR * group.1.len() as f64 + 8.0).sum::<f64>() + 40.0;
    let mut words = String::new();
    for (name, ranges) in groups {
        let _ = write!(words, "{name}: ");
        for r in ranges {
            let [p50, p90, p99, max] = [r.p50, r.p90, r.p99, r.max].map(micros);
            let _ = write!(words, "{} median {p50}, 90 % {p90}, 99 % {p99}, greatest {max}. ", r.name);
        }
    }
    let mut out = String::new();
    open(&mut out, id, height, title, words.trim());
    for tick in scale.ticks() {
        let at = scale.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"8\" y2=\"{:.1}\"/>",
            height - 32.0
        );
        text(&mut out, "tick", at, height - 16.0, "middle", &micros(tick as u64));
    }
    let mut y = 8.0;
    for (name, ranges) in groups {
        text(&mut out, "headline", 0.0, y + 14.0, "start", name);
        y += HEADLINE;
        for range in ranges {
            let middle = y + 9.0;
            let [p50, p90, p99, max] =
                [range.p50, range.p90, range.p99, range.max].map(|us| scale.at(us.max(1) as f64));
            let style = range.style % STYLES;
            text(&mut out, "name", left - 8.0, y + 13.0, "end", &range.name);
            let _ = writeln!(
                out,
                "<line class=\"thin s{style}\" x1=\"{p50:.1}\" x2=\"{max:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
                 <line class=\"thick s{style}\" x1=\"{p50:.1}\" x2=\"{p90:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
                 <circle class=\"mark f{style}\" cx=\"{p50:.1}\" cy=\"{middle:.1}\" r=\"5\"/>\
                 <line class=\"end s{style}\" x1=\"{p99:.1}\" x2=\"{p99:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <line class=\"thin s{style}\" x1=\"{max:.1}\" x2=\"{max:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                middle - 7.0,
                middle + 7.0,
                middle - 3.0,
                middle + 3.0
            );
            text(&mut out, "value", max + 8.0, y + 13.0, "start", &format!("99 % {}", micros(range.p99)));
            y += BAR;
        }
        y += 8.0;
    }
    out.push_str("</svg>\n");
    out
}

/// A round number without the zeros that would make it look measured.
fn tick_label(tick: f64) -> String {
    let text = figure(tick);
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The marker of a series: eight shapes that stay apart without colour.
fn marker(out: &mut String, style: usize, x: f64, y: f64) {
    let polygon = |points: &[(f64, f64)]| {
        let points: Vec<String> =
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!("<polygon class=\"mark f{style}\" points=\"{}\"/>", points.join(" "))
    };
    let shape = match style % STYLES {
        0 => format!("<circle class=\"mark f{style}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"),
        1 => polygon(&[(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)]),
        2 => polygon(&[(0.0, -5.0), (5.0, 4.0), (-5.0, 4.0)]),
        3 => polygon(&[(0.0, -5.5), (5.5, 0.0), (0.0, 5.5), (-5.5, 0.0)]),
        4 => polygon(&[(0.0, 5.0), (5.0, -4.0), (-5.0, -4.0)]),
        5 => polygon(&[(-5.0, -1.8), (5.0, -1.8), (5.0, 1.8), (-5.0, 1.8)]),
        6 => polygon(&[(-1.8, -5.0), (1.8, -5.0), (1.8, 5.0), (-1.8, 5.0)]),
        _ => format!("<circle class=\"mark hollow s{style}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
    };
    out.push_str(&shape);
    out.push('\n');
}

/// From values to places.
#[derive(Clone, Copy, Debug)]
struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Covers all values: from zero, or, where they are too far apart for that, from the decade below.
    fn of(values: &[f64], from: f64, to: f64) -> Self {
        let high = values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max).max(1e-9);
        let low = values.iter().copied().filter(|value| *value > 0.0).fold(high, f64::min);
        if high / low > SPAN_MAX {
            return Self { logarithmic: true, low: 0.0, high: 0.0, from, to }.to_decades(values);
        }
        let step = nice_step(high);
        Self { logarithmic: false, low: 0.0, high: (high / step).ceil() * step, from, to }
    }

    /// Widened to whole decades.
    fn to_decades(self, values: &[f64]) -> Self {
        let high = values.iter().copied().filter(|v| v.is_finite()).fold(1e-9, f64::max);
        let low = values.iter().copied().filter(|value| *value > 0.0).fold(high, f64::min);
        let low = 10f64.powf(low.log10().floor());
        let high = 10f64.powf(high.log10().ceil()).max(low * 10.0);
        Self { low, high, ..self }
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let step = nice_step(self.high);
            return (0..=(self.high / step).round() as u32).map(|index| f64::from(index) * step).collect();
        }
        let decades = (self.high / self.low).log10().round() as i32;
        (0..=decades).map(|power| self.low * 10f64.powi(power)).collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that four to eight of them reach `high`.
fn nice_step(high: f64) -> f64 {
    let power = 10f64.powf((high / 4.0).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|factor| factor * power).rfind(|step| high / step >= 4.0).unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: f64) -> String {
        figure(value)
    }

    #[test]
    fn values_further_apart_than_a_line_can_show_get_a_logarithmic_axis() {
        let near = Scale::of(&[10.0, 90.0], 0.0, 1.0);
        assert!(!near.logarithmic && near.at(0.0) == 0.0 && near.high >= 90.0);
        let far = Scale::of(&[3.0, 900.0], 0.0, 1.0);
        assert!(far.logarithmic);
        assert_eq!((far.low, far.high), (1.0, 1000.0));
        assert_eq!(
            far.ticks().iter().map(|tick| tick.round() as u32).collect::<Vec<_>>(),
            [1, 10, 100, 1000]
        );
        assert!((far.at(10.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_numbers_that_cover_the_greatest_value() {
        for high in [0.07, 1.0, 3.7, 42.0, 999.0, 12_345.0] {
            let scale = Scale::of(&[high], 0.0, 1.0);
            let ticks = scale.ticks();
            assert!((4..=11).contains(&ticks.len()), "{high}: {ticks:?}");
            assert!(ticks.last().unwrap() * 1.000_001 >= high, "{high}: {ticks:?}");
        }
    }

    #[test]
    fn nothing_measured_and_senseless_values_make_a_chart_all_the_same() {
        let series = [
            Series { name: "a".into(), style: 0, points: vec![(1.0, 0.0)] },
            Series { name: "b".into(), style: 9, points: vec![(1.0, f64::INFINITY), (2.0, 5.0)] },
            Series { name: "c".into(), style: 1, points: vec![] },
        ];
        let axis = Axis { title: "x", label: &plain };
        let svg = lines("a", "t", &axis, &axis, &series);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        assert!(!ranges("b", "t", &[]).contains("NaN"));
        assert!(!bars("c", "t", "u", &[("g".into(), vec![])]).contains("NaN"));
    }

    #[test]
    fn names_from_outside_are_escaped() {
        let series = [Series { name: "<b>\"&".into(), style: 0, points: vec![(1.0, 1.0)] }];
        let axis = Axis { title: "x", label: &plain };
        let svg = lines("a", "<script>", &axis, &axis, &series);
        assert!(!svg.contains("<b>") && !svg.contains("<script>") && svg.contains("&lt;b&gt;&quot;&amp;"));
    }
}
