//! What a daemon counts: its Prometheus endpoint.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The text of an endpoint.
///
/// # Errors
/// Nothing answers there.
pub fn metrics(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let head = text.lines().next().unwrap_or_default();
    if head.starts_with("HTTP/1.") && head.contains(" 200 ") {
        Ok(text)
    } else {
        Err(io::Error::other(head.to_owned()))
    }
}

/// A sample, by its name with labels.
pub fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Sum of the samples of a name over all their labels; 0 if there are none.
pub fn sum(metrics: &str, name: &str) -> f64 {
    let labelled = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse().ok()).flatten()
    };
    metrics.lines().filter_map(labelled).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_their_whole_names() {
        let text = "# TYPE a_total counter\na_total{osd=\"1\"} 3\na_total{osd=\"2\"} 4.5\na_total_of_all 9\nb 2\n";
        assert_eq!(sample(text, "a_total{osd=\"2\"}"), Some(4.5));
        assert_eq!((sample(text, "a_total"), sample(text, "b")), (None, Some(2.0)));
        assert_eq!((sum(text, "a_total"), sum(text, "b"), sum(text, "c")), (7.5, 2.0, 0.0));
    }
}
