//! Data for people (tables) or programs (JSON), and progress.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::CliError;

/// How data is shown.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// As JSON.
    pub json: bool,
}

impl Output {
    /// Shows `data`: as JSON if that was asked for, else as the text that `text` makes of it.
    pub fn show<T: Serialize>(self, data: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        if self.json {
            let json = serde_json::to_string_pretty(data)
                .map_err(|e| CliError::failed(format!("cannot write the result as JSON: {e}")))?;
            return print(&format!("{json}\n"));
        }
        self.show_text(&text(data))
    }

    /// Shows `data`, which ends nothing: as one line of JSON if that was asked for, so that a reader knows its end.
    pub fn line<T: Serialize>(self, data: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        if self.json {
            let json = serde_json::to_string(data)
                .map_err(|e| CliError::failed(format!("cannot write the result as JSON: {e}")))?;
            return print(&format!("{json}\n"));
        }
        self.show_text(&text(data))
    }

    fn show_text(self, text: &str) -> Result<(), CliError> {
        print(&if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") })
    }
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write to the standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// A table without lines. Columns whose heading begins with `>` are aligned to the right.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(headings.map(|heading| heading.trim_start_matches('>')));
    table.add_rows(rows);
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Whether stderr takes colours: it is a terminal and `NO_COLOR` is not set.
pub fn has_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stderr().is_terminal()
}

fn painted(code: u8, text: &str, color: bool) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Red on a terminal; for stderr.
pub fn red(text: &str) -> String {
    painted(31, text, has_color())
}

/// A text for stdout in this colour, if stdout takes colours.
pub fn paint(code: u8, text: &str) -> String {
    let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stdout().is_terminal();
    painted(code, text, color)
}

/// A bar for `total` bytes on stderr; nothing is shown if that is no terminal.
pub fn progress_bytes(what: &str, total: u64) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    progress(what, total, template)
}

/// A bar for a number of things.
pub fn progress_count(what: &str, total: u64) -> ProgressBar {
    progress(what, total, "{msg} {wide_bar} {pos}/{len} {eta}")
}

fn progress(what: &str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
