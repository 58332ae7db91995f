//! URLs for logs and errors, without secrets.
//!
//! A URL that holds a secret is refused, but the refusal must not repeat it, and a URL is often
//! wrong before it is known what its parts mean. So every text that was meant as a URL, and every
//! text of a library that may quote one, is converted here before it is shown.

use super::combined;

/// Replaces a part that may be secret.
const HIDDEN: &str = "***";
/// Schemes followed by a path of this machine, which may hold any byte.
const PATHS: [&str; 5] = [
    "local:",
    "store:",
    "redb:",
    "grpc+unix:/",
    "objectstore+file:/",
];
/// Characters that end a URL inside another text.
const ENDS: [char; 10] = [' ', '\t', '\n', '"', '\'', '`', '(', ')', '<', '>'];

/// Whether something like `?NAME=VALUE` follows what should be a path alone.
pub(crate) fn has_parameters(path: &str) -> bool {
    let query = path.split_once('?');
    query.is_some_and(|(_, query)| query.contains('='))
}

/// `url`, which may be invalid, without user, password, query and fragment.
pub fn shown_url(url: &str) -> String {
    if let Some(addresses) = combined::addresses(url) {
        let shown = addresses.into_iter();
        let shown = shown.map(|(key, address)| format!("{key}={}", shown_url(address)));
        return shown.collect::<Vec<_>>().join("&");
    }
    if PATHS
        .iter()
        .any(|path| url.starts_with(path) && !url.starts_with("grpc+unix://"))
    {
        let is_path = ["local:", "store:", "redb:"];
        let has_query =
            !is_path.iter().any(|scheme| url.starts_with(scheme)) || has_parameters(url);
        return match has_query {
            true => before_query(url).to_owned(),
            false => url.to_owned(),
        };
    }
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => match url.split_once(':') {
            Some((scheme, rest)) => (format!("{scheme}:"), rest),
            None => (String::new(), url),
        },
    };
    let place = before_query(rest);
    // A password with a question mark, a number sign or a slash in it ends the apparent host too
    // early.
    let authority = place.split('/').next().unwrap_or_default();
    let shown = match (place.rsplit_once('@'), rest.contains('@')) {
        (Some((_, host)), _) => format!("{HIDDEN}@{host}"),
        (None, true) if !ends_in_port(authority) => HIDDEN.to_owned(),
        // A user and password without a host.
        (None, false) if scheme.ends_with("//") && !ends_in_port(authority) => {
            let host = authority.rsplit_once(':').map_or("", |(host, _)| host);
            format!("{host}:{HIDDEN}")
        }
        _ => place.to_owned(),
    };
    format!("{scheme}{shown}")
}

/// `text`, with its URLs converted by [`shown_url`].
pub fn with_shown_urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at);
        let start = before
            .rfind(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c))
            .map_or(0, |at| at + 1);
        let end = after.find(ENDS).unwrap_or(after.len());
        let (text, scheme) = before.split_at(start);
        let (url, after) = after.split_at(end);
        shown.push_str(text);
        shown.push_str(&shown_url(&format!("{scheme}{url}")));
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// The name of a URL's parameter, for an error: one without a value may be a value itself.
pub(crate) fn shown_parameter(name: &str, value: &str) -> String {
    match value.is_empty() {
        true => HIDDEN.to_owned(),
        false => format!("{name:?}"),
    }
}

fn before_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// Whether `authority` is a host, or one and a port.
fn ends_in_port(authority: &str) -> bool {
    let host = authority
        .rsplit_once(']')
        .map_or(authority, |(_, port)| port);
    host.rsplit_once(':')
        .is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_secret() {
        for (url, shown) in [
            ("grpc+https://host:8000", "grpc+https://host:8000"),
            (
                "grpc+https://user:hunter2@host:1",
                "grpc+https://***@host:1",
            ),
            (
                "grpc+https://hunter2@host?x=hunter2",
                "grpc+https://***@host",
            ),
            ("grpc+https:user:hunter2@host", "grpc+https:***@host"),
            (
                "ftp+odd://user:hun/ter2@host/path",
                "ftp+odd://***@host/path",
            ),
            ("s3://user:hun?ter2@host", "s3://***"),
            ("s3://user:hun#ter2@host", "s3://***"),
            ("grpc+https://host?token-file=/run/a@b", "grpc+https://host"),
            (
                "objectstore+s3://bucket/p?secret_access_key=hunter2",
                "objectstore+s3://bucket/p",
            ),
            ("user:hunter2@host", "user:***@host"),
            ("grpc+https://user:hunter2", "grpc+https://user:***"),
            ("grpc+https://user:hun/ter2", "grpc+https://user:***"),
            ("hunter2@host?hunter2#hunter2", "***@host"),
            ("grpc+https://[::1]:8000#hunter2", "grpc+https://[::1]:8000"),
            ("grpc+unix://user:hunter2@host/p", "grpc+unix://***@host/p"),
            // Paths of this machine are no secrets, whatever is in them.
            ("local:/srv/a@b?c#d", "local:/srv/a@b?c#d"),
            ("grpc+unix:/run/a@b?token-file=/t", "grpc+unix:/run/a@b"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(shown_url(url), shown, "{url}");
        }
    }

    #[test]
    fn urls_that_a_text_quotes_are_shown_so_too() {
        let text = "error sending request for url (https://a.example/c/x?sv=1&sig=hunter2): 403 at \
                    \"s3://me:hunter2@b\"";
        let shown = "error sending request for url (https://a.example/c/x): 403 at \"s3://***@b\"";
        assert_eq!(with_shown_urls(text), shown);
        assert_eq!(with_shown_urls("no URL: here"), "no URL: here");
    }
}
