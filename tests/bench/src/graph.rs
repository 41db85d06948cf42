//! Latency against throughput, as a drawing: one curve per scheme and kind of load, one point per depth.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

/// One curve.
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// Operations per second and mean latency in microseconds, by rising depth.
    pub points: Vec<(f64, f64)>,
}

/// Draws the curves into an SVG file.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, curves: &[Curve]) -> Result<()> {
    paint(path, curves).map_err(|e| anyhow!("cannot draw {}: {e}", path.display()))
}

fn paint(path: &Path, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let fastest = points().map(|(rate, _)| *rate).fold(1.0, f64::max);
    let (least, most) = points().fold((f64::MAX, 1.0), |(low, high), (_, us)| (us.min(low), us.max(high)));
    let root = SVGBackend::new(path, (1000, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..fastest * 1.05, (least * 0.8..most * 1.2).log_scale())?;
    chart.configure_mesh().x_desc("operations per second").y_desc("mean latency, us").draw()?;
    for (number, curve) in curves.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), color.stroke_width(2)).point_size(3))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_drawn_and_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("graph.svg");
        let curve = |name: &str| Curve { name: name.into(), points: vec![(1e4, 100.0), (1e5, 900.0)] };
        draw(&path, &[curve("reads, 3 copies"), curve("writes, 2+1")]).expect("a drawing");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(text.contains("reads, 3 copies") && text.contains("writes, 2+1"));
        assert!(text.matches("<polyline").count() >= 2);
    }
}
