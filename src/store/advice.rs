//! Advice for failed connections, derived from the libraries' messages, which know neither the URLs
//! of this program nor its readers.

use super::failure_kind::FailureKind;

/// A part of a library's message, and the advice.
const KNOWN: [(&str, &str); 13] = [
    (
        "InvalidContentType",
        "the server does not speak TLS on this port: write its TLS port, or http instead of https \
         where the network is trusted",
    ),
    (
        "UnknownIssuer",
        "no authority that is trusted here signed the server's certificate: name its authority with \
         tls-ca-cert-path=FILE",
    ),
    (
        "CaUsedAsEndEntity",
        "the server shows the certificate of an authority (CA:TRUE) as its own: give it one that the \
         authority signed",
    ),
    (
        "NotValidForName",
        "the server's certificate is for another name: use a name that it is for",
    ),
    (
        "certificate not valid for name",
        "use a name that the server's certificate is for",
    ),
    (
        "certificate expired",
        "the server's certificate has to be renewed, or this machine's clock is wrong",
    ),
    (
        "certificate not valid yet",
        "this machine's clock is wrong, or the server's",
    ),
    (
        "CertificateRequired",
        "the server requires a certificate of its clients: name one with tls-client-cert-path=FILE and \
         tls-client-key-path=FILE in the URL, or with the keys of the same names in the store's table of a \
         configuration",
    ),
    (
        "fatal alert: UnknownCA",
        "the server does not accept the authority that signed this client's certificate: name another \
         certificate with tls-client-cert-path and tls-client-key-path",
    ),
    (
        "fatal alert: BadCertificate",
        "the server does not accept this client's certificate: name another one with tls-client-cert-path and \
         tls-client-key-path",
    ),
    (
        "Connection refused",
        "nothing listens there: is the server running, and is the port right?",
    ),
    (
        "failed to lookup address",
        "the name of the host is not known: is it spelled right?",
    ),
    (
        "No such file or directory",
        "there is no such socket: is the server running?",
    ),
];

/// The address at which a cloud's machines get credentials, and the name of the host there at Google. A request
/// that failed there means that there are no others.
const CREDENTIALS_OF_MACHINE: [&str; 2] = ["169.254.169.254", "metadata.google.internal"];
const NO_AWS_CREDENTIALS: &str = "there are no credentials for the bucket: set AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or name a file of them with credentials-file=FILE; a public bucket needs \
    skip_signature=true";
const NO_GOOGLE_CREDENTIALS: &str = "there are no credentials for the bucket: set GOOGLE_APPLICATION_CREDENTIALS to the path \
    of a service account's key (JSON), or name it with google_service_account=FILE; a public bucket needs \
    skip_signature=true";
const NO_AZURE_CREDENTIALS: &str = "there are no credentials for the container: set AZURE_STORAGE_ACCOUNT_KEY or \
    AZURE_STORAGE_SAS_KEY, or name a file of one of them with credentials-file=FILE; a public container needs \
    skip_signature=true";
const TOKEN: &str = "name the file of a token that the server takes with token-file=FILE";
const IN_THE_CLEAR: &str = "if the server has TLS, write grpc+https://";
const MAYBE_CERTIFICATE: &str = "if the server requires a certificate of its clients, name one that it accepts with \
    tls-client-cert-path=FILE and tls-client-key-path=FILE in the URL, or with the keys of the same names in the \
    store's table of a configuration";

/// The message, in lower case, about a server that closes the connection: one that answers unencrypted HTTP/2
/// with a TLS alert, or one whose alert about a missing certificate comes after the connection broke.
const CLOSED: [&str; 5] = [
    "frame with invalid size",
    "connection closed",
    "connection reset",
    "broken pipe",
    "stream closed",
];

/// What to do about a bucket without credentials.
fn credentials(store: &str) -> &'static str {
    let place = store.strip_prefix("objectstore+").unwrap_or(store);
    let scheme = place.split(':').next().unwrap_or_default();
    let is_azure = ["az", "adl", "azure", "abfs", "abfss"].contains(&scheme)
        || place.contains(".core.windows.net")
        || place.contains(".fabric.microsoft.com");
    match scheme {
        "gs" => NO_GOOGLE_CREDENTIALS,
        _ if is_azure => NO_AZURE_CREDENTIALS,
        _ => NO_AWS_CREDENTIALS,
    }
}

/// The advice at the end of `text`, if [`with_advice`] has put some there: what is before it, and the advice.
pub(crate) fn split_advice(text: &str) -> Option<(&str, &'static str)> {
    let known = KNOWN.iter().map(|(_, advice)| *advice);
    let others = [
        NO_AWS_CREDENTIALS,
        NO_GOOGLE_CREDENTIALS,
        NO_AZURE_CREDENTIALS,
        TOKEN,
        IN_THE_CLEAR,
        MAYBE_CERTIFICATE,
    ];
    known.chain(others).find_map(|advice| {
        let before = text.strip_suffix(advice)?.strip_suffix(": ")?;
        Some((before, advice))
    })
}

/// `why`, with advice where there is some. `store` is the URL of the store.
pub(super) fn with_advice(store: &str, kind: FailureKind, why: &str) -> String {
    // A server reports the failure of its own upstream, with advice.
    if split_advice(why).is_some() {
        return why.to_owned();
    }
    let reports = |parts: &[&str]| {
        let why = why.to_ascii_lowercase();
        parts.iter().any(|part| why.contains(part))
    };
    let advice = match kind {
        // The advice is about parameters that a binary cache does not have.
        _ if store.starts_with("nix+") => None,
        FailureKind::Unauthenticated
            if store.starts_with("grpc+") && !why.contains("token-file") =>
        {
            Some(TOKEN)
        }
        FailureKind::Unreachable | FailureKind::Other
            if store.starts_with("grpc+http:") && reports(&CLOSED) =>
        {
            Some(IN_THE_CLEAR)
        }
        FailureKind::Unreachable | FailureKind::Other
            if store.starts_with("objectstore+") && reports(&CREDENTIALS_OF_MACHINE) =>
        {
            Some(credentials(store))
        }
        FailureKind::Unreachable | FailureKind::Other => {
            let known = KNOWN.iter().find(|(part, _)| why.contains(part));
            let known = known.map(|(_, advice)| *advice);
            let may_lack = store.starts_with("grpc+https:") && reports(&CLOSED);
            known.or(may_lack.then_some(MAYBE_CERTIFICATE))
        }
        _ => None,
    };
    match advice {
        Some(advice) => format!("{why}: {advice}"),
        None => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_explained_and_the_rest_stays() {
        let shown = |store, code, why| with_advice(store, code, why);
        let refused = shown(
            "grpc+http://host",
            FailureKind::Unreachable,
            "tcp connect error: Connection refused (os error 111)",
        );
        assert_eq!(
            refused,
            "tcp connect error: Connection refused (os error 111): nothing listens \
             there: is the server running, and is the port right?"
        );
        let clear = shown("grpc+http://host", FailureKind::Other, "connection closed");
        assert!(
            clear.ends_with("if the server has TLS, write grpc+https://"),
            "{clear}"
        );
        assert_eq!(
            shown(
                "grpc+http://host",
                FailureKind::Corrupt,
                "Connection refused"
            ),
            "Connection refused"
        );
        let keyless = shown(
            "objectstore+s3://bucket",
            FailureKind::Unreachable,
            "error sending request for url (http://169.254.169.254/latest/api/token)",
        );
        assert!(
            keyless.contains("there are no credentials for the bucket"),
            "{keyless}"
        );
        assert!(keyless.contains("credentials-file=FILE"), "{keyless}");
        // Each cloud has its own names.
        let failed = "error performing GET http://169.254.169.254/metadata/token: 403";
        for (store, expected, other) in [
            (
                "objectstore+gs://bucket",
                "GOOGLE_APPLICATION_CREDENTIALS",
                "AWS_",
            ),
            ("objectstore+az://box", "AZURE_STORAGE_ACCOUNT_KEY", "AWS_"),
            (
                "objectstore+https://a.blob.core.windows.net/box",
                "AZURE_STORAGE",
                "AWS_",
            ),
            ("objectstore+s3://bucket", "AWS_ACCESS_KEY_ID", "GOOGLE_"),
        ] {
            let keyless = shown(store, FailureKind::Unreachable, failed);
            assert!(keyless.contains(expected), "{keyless}");
            assert!(!keyless.contains(other), "{keyless}");
        }
        // The alert of a server that requires a certificate may be lost with the connection.
        for why in [
            "received fatal alert: CertificateRequired",
            "connection error: stream closed because of a broken pipe",
        ] {
            let lacking = shown("grpc+https://host", FailureKind::Other, why);
            assert!(lacking.contains("tls-client-cert-path=FILE"), "{lacking}");
            assert!(lacking.contains("table of a configuration"), "{lacking}");
        }
        // A server's own upstream fails: one piece of advice is enough.
        assert_eq!(
            shown("grpc+unix:/socket", FailureKind::Unreachable, &refused),
            refused
        );
        assert_eq!(
            split_advice(&refused),
            Some((
                "tcp connect error: Connection refused (os error 111)",
                "nothing listens there: is the server running, and is the port right?"
            ))
        );
        let token = shown(
            "grpc+https://host",
            FailureKind::Unauthenticated,
            "no token",
        );
        assert!(token.contains("token-file=FILE"), "{token}");
        let bucket = shown(
            "objectstore+s3://host",
            FailureKind::Unauthenticated,
            "no token",
        );
        assert!(!bucket.contains("token-file=FILE"), "{bucket}");
    }
}
