//! Logins from a netrc(5) file: what Nix's `netrc-file` setting reads.

/// A login for one machine. Never printed.
#[derive(PartialEq, Eq)]
pub(super) struct NetrcLogin {
    pub(super) user: String,
    pub(super) password: String,
}

/// The login for `host` in the netrc file `text`: that of the first `machine` entry of this name,
/// or of `default`. `macdef` bodies are skipped.
pub(super) fn login(text: &str, host: &str) -> Option<NetrcLogin> {
    let mut words = words(text);
    let mut applies = false;
    let (mut user, mut password) = (None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" if applies && (user.is_some() || password.is_some()) => break,
            "machine" => applies = words.next() == Some(host),
            "default" => applies = true,
            "login" if applies => user = words.next(),
            "password" if applies => password = words.next(),
            "login" | "password" | "account" => drop(words.next()),
            _ => {}
        }
    }
    (user.is_some() || password.is_some()).then(|| NetrcLogin {
        user: user.unwrap_or_default().to_owned(),
        password: password.unwrap_or_default().to_owned(),
    })
}

/// The words outside of comments and macro definitions.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut in_macro = false;
    let lines = text.lines().filter(move |line| {
        let line = line.trim();
        match (in_macro, line.is_empty()) {
            (true, is_end) => {
                in_macro = !is_end;
                false
            }
            (false, _) => {
                in_macro = line.starts_with("macdef");
                !in_macro && !line.starts_with('#')
            }
        }
    });
    lines.flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_of_the_host_counts_and_default_for_all_others() {
        let text = "# comment\nmachine a.org login me password one\n\
                    macdef init\nmachine c.org login no password no\n\n\
                    machine b.org\n  password two\nmachine a.org login x password y\n\
                    default login anon password guest\n";
        let of = |host| {
            let login = login(text, host).unwrap();
            (login.user, login.password)
        };
        assert_eq!(of("a.org"), ("me".to_owned(), "one".to_owned()));
        assert_eq!(of("b.org"), (String::new(), "two".to_owned()));
        assert_eq!(of("c.org"), ("anon".to_owned(), "guest".to_owned()));
        assert!(login("machine a.org login me", "b.org").is_none());
    }
}
