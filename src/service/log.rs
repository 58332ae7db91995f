//! The service's log.
//!
//! Started by systemd, events go to the journal with their fields (`MOUNT`, `STORE`, `PATH`,
//! `DIGEST`, `ERRNO`, …: the names in the code, in capitals), so that `journalctl MOUNT=tree` finds
//! the events of a mount. Otherwise they are lines of text, or JSON. Repeated warnings are logged
//! once and then counted ([`LogRateLimiter`]). Spans go to a collector if there is one ([`telemetry`]).

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use thiserror::Error;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::config::{LogConfig, LogFormat};
use super::log_rate_limiter::LogRateLimiter;
use super::telemetry::{self, CollectorError, SpanExporter};
use crate::castore::{Printable, printable_json};

/// Why the configured log is impossible.
#[derive(Debug, Error)]
pub enum LogError {
    /// The journal rejects it.
    #[error("cannot write to the journal: {0}")]
    Journal(io::Error),
    /// Spans are impossible.
    #[error("log.otlp: {0}")]
    Spans(#[from] CollectorError),
    /// `level` is not a filter.
    #[error("log.level: {0}")]
    Level(String),
}

/// Starts to log with `log`. If spans are exported, dropping the returned value sends the last of
/// them.
pub(super) fn start(log: &LogConfig) -> Result<Option<SpanExporter>, LogError> {
    let level = log.level.as_deref().unwrap_or("info");
    let filter = match std::env::var("RUST_LOG") {
        Ok(variable) => EnvFilter::builder().parse_lossy(variable),
        Err(_) => EnvFilter::builder()
            .parse(level)
            .map_err(|error| LogError::Level(error.to_string()))?,
    };
    let format = match log.format {
        LogFormat::Auto if stderr_is_the_journal() => LogFormat::Journal,
        LogFormat::Auto => LogFormat::Text,
        format => format,
    };
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Journal => tracing_journald::layer()
            .map_err(LogError::Journal)?
            .with_field_prefix(None)
            .with_syslog_identifier("castore-fs".to_owned())
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .with_writer(|| JsonLines)
            .boxed(),
        LogFormat::Text | LogFormat::Auto => tracing_subscriber::fmt::layer()
            .fmt_fields(text_fields())
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
    };
    let (exporter, traces) = match &log.otlp {
        Some(collector) => {
            let (exporter, traces) = SpanExporter::start(collector)?;
            (Some(exporter), Some(traces))
        }
        None => (None, None),
    };
    let traces = traces.map(|traces| traces.with_filter(filter_fn(telemetry::is_followed)));
    // Fails only if another one is set, which the command line does not.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .with(traces)
        .with(LogRateLimiter::of_this_process())
        .try_init();
    Ok(exporter)
}

/// How a text log writes an event's message and fields: each through [`Printable`], so that no
/// name, path or answer of a server forges a line or reaches a terminal raw.
pub fn text_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        let value = format!("{value:?}");
        let value = Printable(value.as_bytes());
        match (field.name(), writer.has_ansi_escapes()) {
            ("message", _) => write!(writer, "{value}"),
            // Italic, and dim for the sign.
            (name, true) => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
            (name, false) => write!(writer, "{name}={value}"),
        }
    })
    .delimited(" ")
}

/// Standard error, for JSON.
struct JsonLines;

impl io::Write for JsonLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let json = String::from_utf8_lossy(bytes);
        io::Write::write_all(&mut io::stderr(), printable_json(&json).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut io::stderr())
    }
}

/// Whether standard error is connected to the journal: systemd passes the file's identity.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(io::stderr().as_fd()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}
