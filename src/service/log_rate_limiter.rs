//! The log rate limiter: a repeated message is one line, then one line a minute with a count.
//!
//! An endpoint that is down fails every read, and a damaged blob every program that reads it: a
//! journal full of that hides other events. Warnings and errors are the same if they come from the
//! same place in the code and name the same mount, store, endpoint, digest and errno. If it is the endpoint
//! that failed, the digest makes no difference: the count of the others names the endpoint, and no object
//! that they were not about. And since each of ten thousand files may fail with values of its own, no place
//! in the code logs more than [`MOST_KINDS`] kinds in a minute; the others are counted together, by mount,
//! store and endpoint.

use crate::quantity::count;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite, span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// How long a logged kind is only counted.
const QUIET: Duration = Duration::from_secs(60);
/// Kinds of one place that are logged within that time.
const MOST_KINDS: usize = 20;
/// The target of this module's own messages.
const TARGET: &str = "castore_fs::log_rate_limiter";

/// The counts of this process.
static COUNTED: LazyLock<Arc<Mutex<LoggedEvents>>> = LazyLock::new(Arc::default);

/// What makes two events the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct EventKey {
    mount: Option<String>,
    store: Option<String>,
    endpoint: Option<String>,
    digest: Option<String>,
    errno: Option<i64>,
    message: String,
}

#[derive(Debug)]
struct LoggedEvent {
    level: Level,
    /// When it was last logged.
    logged: Instant,
    /// How often it came since.
    more: u64,
}

/// Recently logged kinds, by place in the code.
#[derive(Debug, Default)]
struct LoggedEvents(HashMap<callsite::Identifier, HashMap<EventKey, LoggedEvent>>);

/// A kind that was repeated since it was logged.
#[derive(Debug, PartialEq, Eq)]
struct RepeatedEvent {
    kind: EventKey,
    level: Level,
    more: u64,
}

impl LoggedEvents {
    /// Whether to log this one.
    fn admit(
        &mut self,
        place: callsite::Identifier,
        kind: EventKey,
        level: Level,
        now: Instant,
    ) -> bool {
        let kinds = self.0.entry(place).or_default();
        // All that exceeds the limit is of one kind for each mount, store and endpoint; or of one altogether,
        // if those are many as well.
        let kind = match kinds.contains_key(&kind) || kinds.len() < MOST_KINDS {
            true => kind,
            false => {
                let many = EventKey {
                    digest: None,
                    errno: None,
                    message: format!("{} (of many kinds)", kind.message),
                    ..kind
                };
                match kinds.contains_key(&many) || kinds.len() < 2 * MOST_KINDS {
                    true => many,
                    false => EventKey {
                        message: many.message,
                        ..EventKey::default()
                    },
                }
            }
        };
        match kinds.get_mut(&kind) {
            Some(entry) => {
                entry.more += 1;
                false
            }
            None => {
                let more = u64::from(kinds.len() >= MOST_KINDS);
                let entry = LoggedEvent {
                    level,
                    logged: now,
                    more,
                };
                kinds.insert(kind, entry);
                more == 0
            }
        }
    }

    /// The counts to be logged. Kinds that were not repeated are dropped.
    fn due(&mut self, now: Instant) -> Vec<RepeatedEvent> {
        let mut again = Vec::new();
        for kinds in self.0.values_mut() {
            kinds.retain(|kind, entry| {
                if now.duration_since(entry.logged) < QUIET {
                    return true;
                }
                if entry.more == 0 {
                    return false;
                }
                again.push(RepeatedEvent {
                    kind: kind.clone(),
                    level: entry.level,
                    more: std::mem::take(&mut entry.more),
                });
                entry.logged = now;
                true
            });
        }
        self.0.retain(|_, kinds| !kinds.is_empty());
        again
    }
}

/// Filters repeated warnings and errors out of the log.
#[derive(Debug, Default)]
pub(super) struct LogRateLimiter(Arc<Mutex<LoggedEvents>>);

impl LogRateLimiter {
    /// The filter whose counts [`report`] logs.
    pub(super) fn of_this_process() -> Self {
        Self(COUNTED.clone())
    }
}

/// The fields that a span gives to the events in it.
struct SpanKey(EventKey);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogRateLimiter {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let mut kind = EventKey::default();
        attributes.record(&mut kind);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanKey(kind));
        }
    }

    fn event_enabled(&self, event: &Event<'_>, context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target() == TARGET {
            return true;
        }
        let mut kind = EventKey::default();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(around) = span.extensions().get::<SpanKey>() {
                kind.mount = kind.mount.or_else(|| around.0.mount.clone());
                kind.store = kind.store.or_else(|| around.0.store.clone());
            }
        }
        event.record(&mut kind);
        // A call that failed for want of the endpoint, whatever it was to fetch.
        if kind.endpoint.is_some() && kind.errno.is_some() {
            kind.digest = None;
        }
        let (place, level) = (metadata.callsite(), *metadata.level());
        self.0.lock().admit(place, kind, level, Instant::now())
    }
}

impl Visit for EventKey {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name().eq_ignore_ascii_case("errno") {
            self.errno = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

impl EventKey {
    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "MOUNT" | "mount" => self.mount = Some(value),
            "STORE" | "store" => self.store = Some(value),
            "ENDPOINT" | "endpoint" => self.endpoint = Some(value),
            "DIGEST" | "digest" => self.digest = Some(value),
            "message" => self.message = value,
            _ => {}
        }
    }
}

/// Logs the counts of the last minute. To be called every few seconds.
pub(super) fn report() {
    let due = COUNTED.lock().due(Instant::now());
    for RepeatedEvent { kind, level, more } in due {
        macro_rules! report {
            ($level:ident) => {
                tracing::$level!(
                    target: TARGET,
                    MOUNT = kind.mount,
                    STORE = kind.store,
                    ENDPOINT = kind.endpoint,
                    DIGEST = kind.digest,
                    ERRNO = kind.errno,
                    COUNT = more,
                    "{}: {}",
                    count(more, "more time", "more times"),
                    kind.message
                )
            };
        }
        match level {
            Level::ERROR => report!(error),
            _ => report!(warn),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct PassedEvents(Arc<Mutex<u32>>);

    impl<S: Subscriber> Layer<S> for PassedEvents {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            *self.0.lock() += 1;
        }
    }

    /// An object fails by itself: it is damaged.
    fn fail(digest: u32) {
        tracing::error!(digest = %digest, errno = 5, "a request failed");
    }

    /// The limiter, its counts, and what gets through.
    fn limited() -> (impl Subscriber, Arc<Mutex<LoggedEvents>>, PassedEvents) {
        let (passed, counted) = (
            PassedEvents::default(),
            Arc::<Mutex<LoggedEvents>>::default(),
        );
        let subscriber = tracing_subscriber::registry()
            .with(LogRateLimiter(counted.clone()))
            .with(passed.clone());
        (subscriber, counted, passed)
    }

    #[test]
    fn a_repeated_error_is_logged_once_and_counted_for_a_minute() {
        let (subscriber, counted, passed) = limited();
        let passed = || std::mem::take(&mut *passed.0.lock());
        tracing::subscriber::with_default(subscriber, || {
            let in_mount = |name: &str| tracing::error_span!("mount", MOUNT = name, STORE = "s");
            in_mount("a").in_scope(|| (0..100).for_each(|_| fail(1)));
            assert_eq!(passed(), 1);
            in_mount("b").in_scope(|| fail(1));
            in_mount("a").in_scope(|| fail(2));
            assert_eq!(passed(), 2);
            tracing::info!("what is no trouble");
            tracing::info!("what is no trouble");
            assert_eq!(passed(), 2);
            let now = Instant::now();
            assert_eq!(counted.lock().due(now), []);
            let again = counted.lock().due(now + QUIET);
            assert_eq!(again.len(), 1);
            assert_eq!(
                (again[0].more, again[0].kind.mount.as_deref()),
                (99, Some("a"))
            );
            assert_eq!(again[0].kind.errno, Some(5));
            // After a minute without it, it is logged again.
            assert_eq!(counted.lock().due(now + 2 * QUIET), []);
            in_mount("a").in_scope(|| fail(1));
            assert_eq!(passed(), 1);
        });
    }

    #[test]
    fn ten_thousand_kinds_are_not_ten_thousand_lines() {
        let (subscriber, counted, passed) = limited();
        tracing::subscriber::with_default(subscriber, || {
            (0..10_000).for_each(fail);
        });
        assert_eq!(*passed.0.lock(), MOST_KINDS as u32);
        let again = counted.lock().due(Instant::now() + QUIET);
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].more, 10_000 - MOST_KINDS as u64);
        assert!(again[0].kind.message.ends_with("(of many kinds)"));
    }

    #[test]
    fn a_failing_endpoint_is_one_kind_that_names_it_and_no_object() {
        let (subscriber, counted, passed) = limited();
        let unreachable = |endpoint: &str, digest: u32| {
            tracing::error!(endpoint, digest = %digest, errno = 5, "a request failed");
        };
        tracing::subscriber::with_default(subscriber, || {
            let in_mount = tracing::error_span!("mount", MOUNT = "tree", STORE = "main");
            in_mount.in_scope(|| (0..1000).for_each(|digest| unreachable("grpc://a", digest)));
            in_mount.in_scope(|| (0..10).for_each(|digest| unreachable("grpc://b", digest)));
        });
        assert_eq!(*passed.0.lock(), 2, "once for each endpoint");
        let mut again = counted.lock().due(Instant::now() + QUIET);
        again.sort_by_key(|repeated| repeated.kind.endpoint.clone());
        let shown: Vec<_> = again
            .iter()
            .map(|repeated| {
                let kind = &repeated.kind;
                (
                    kind.endpoint.as_deref(),
                    kind.mount.as_deref(),
                    &kind.digest,
                    repeated.more,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (Some("grpc://a"), Some("tree"), &None, 999),
                (Some("grpc://b"), Some("tree"), &None, 9),
            ]
        );
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted_by_mount() {
        let (subscriber, counted, _) = limited();
        tracing::subscriber::with_default(subscriber, || {
            for mount in ["a", "b"] {
                let in_mount = tracing::error_span!("mount", MOUNT = mount);
                in_mount.in_scope(|| (0..100).for_each(fail));
            }
        });
        let again = counted.lock().due(Instant::now() + QUIET);
        let mut counts: Vec<_> = again
            .iter()
            .map(|repeated| (repeated.kind.mount.as_deref(), repeated.more))
            .collect();
        counts.sort();
        assert_eq!(counts, [(Some("a"), 80), (Some("b"), 100)]);
    }
}
