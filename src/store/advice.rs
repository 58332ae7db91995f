//! Advice for failed connections, derived from the libraries' messages, which know neither the URLs
//! of this program nor its readers.

use super::failure_kind::FailureKind;

/// A part of a library's message, and the advice.
const KNOWN: [(&str, &str); 12] = [
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
        "the server demands a certificate of its clients: name one with tls-client-cert-path=FILE and \
         tls-client-key-path=FILE",
    ),
    (
        "169.254.169.254",
        "there are no credentials for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
         name a file of them with credentials-file=FILE; a public bucket needs skip_signature=true",
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

/// The message, in lower case, about a server that answers unencrypted HTTP/2 with a TLS alert, and
/// closes the connection.
const NOT_IN_THE_CLEAR: [&str; 5] = [
    "frame with invalid size",
    "connection closed",
    "connection reset",
    "broken pipe",
    "stream closed",
];

/// `why`, with advice where there is some. `store` is the URL of the store.
pub(super) fn with_advice(store: &str, kind: FailureKind, why: &str) -> String {
    let advice = match kind {
        FailureKind::Unauthenticated
            if store.starts_with("grpc+") && !why.contains("token-file") =>
        {
            Some("name the file of a token that the server takes with token-file=FILE")
        }
        FailureKind::Unreachable | FailureKind::Other
            if store.starts_with("grpc+http:")
                && NOT_IN_THE_CLEAR
                    .iter()
                    .any(|part| why.to_ascii_lowercase().contains(part)) =>
        {
            Some("if the server has TLS, write grpc+https://")
        }
        FailureKind::Unreachable | FailureKind::Other => {
            let known = KNOWN.iter().find(|(part, _)| why.contains(part));
            known.map(|(_, advice)| *advice)
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
