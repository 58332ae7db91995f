//! Manual pages that are written as Markdown in `docs/`: the configuration file's and mount(8)'s.
//!
//! Only what those two files use is understood: headings, paragraphs, code blocks, lists whose items begin
//! with terms in bold, and code, bold and links within a line.

use clap_mangen::roff::{Inline, Roff, bold, roman};

/// A page: its file's name and its text.
pub(super) struct ManualPage {
    pub(super) file: &'static str,
    pub(super) text: String,
}

const CONFIG: &str = include_str!("../../docs/config.md");
const MOUNT: &str = include_str!("../../docs/mount.castore-fs.md");

/// What the reference of the configuration has in its other parts: commands and `docs/service.md`.
const CONFIG_END: &str = "\
## EXIT STATUS

`castore-fs check-config` exits with 0 if the file is right, and with 1 after a line for each mistake.

## FILES

- **`/etc/castore-fs/config.toml`**: Where `castore-fs daemon`, `check-config` and commands with `--store store:NAME` look for the file.
- **`/var/lib/castore-fs`**: The state directory, unless `state-dir` or systemd's `StateDirectory=` names another.
- **`/run/castore-fs/control.sock`**: The control socket, unless `control.socket` names another.

## ENVIRONMENT

- **`CASTORE_FS_CONFIG`**: The file that commands read instead.
- **`RUST_LOG`**: Replaces `log.level`.

## SEE ALSO

castore-fs(1), castore-fs-daemon(1), castore-fs-check-config(1), mount.castore-fs(8)
";

/// The pages that do not come from the command line's help.
pub(super) fn pages() -> [ManualPage; 2] {
    // The page starts after the comment and the title.
    let config = CONFIG.split_once("\n\n").map_or(CONFIG, |(_, text)| text);
    let config = format!(
        "castore-fs.toml - the configuration of castore-fs\n\n## DESCRIPTION\n\n{config}\n{CONFIG_END}"
    );
    let mount = MOUNT.split_once("\n\n").map_or(MOUNT, |(_, text)| text);
    [
        ManualPage {
            file: "castore-fs.toml.5",
            text: page("castore-fs.toml", "5", &config),
        },
        ManualPage {
            file: "mount.castore-fs.8",
            text: page("mount.castore-fs", "8", mount),
        },
    ]
}

fn page(name: &str, section: &str, markdown: &str) -> String {
    let mut roff = Roff::new();
    roff.control("TH", [name, section]);
    roff.control("SH", ["NAME"]);
    let mut verbatim = false;
    for line in markdown.lines() {
        if line.starts_with("```") {
            verbatim = !verbatim;
            roff.control(if verbatim { "nf" } else { "fi" }, []);
            continue;
        }
        if verbatim {
            roff.text([roman(line)]);
            continue;
        }
        let indented = line.starts_with("  ");
        let line = line.trim();
        if let Some(heading) = line.strip_prefix("## ") {
            roff.control("SH", [heading.replace('`', "").as_str()]);
        } else if let Some(item) = line.strip_prefix("- ") {
            let (term, text) = item.split_once(": ").unwrap_or((item, ""));
            if indented {
                roff.control("RS", []);
            }
            roff.control("TP", []);
            roff.text(inline(term));
            roff.text(inline(text));
            if indented {
                roff.control("RE", []);
            }
        } else if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text(inline(line));
        }
    }
    roff.render()
}

/// A line's parts: between backquotes it is bold; of a link the text remains.
fn inline(line: &str) -> Vec<Inline> {
    let mut line = line.replace("**", "");
    while let Some(end) = line.find("](") {
        let Some(close) = line[end..].find(')') else {
            break;
        };
        line.replace_range(end..=end + close, "");
        if let Some(start) = line[..end].rfind('[') {
            line.replace_range(start..=start, "");
        }
    }
    let parts = line.split('`').enumerate();
    let parts = parts.filter(|(_, text)| !text.is_empty());
    let parts = parts.map(|(at, text)| match at % 2 {
        0 => roman(text),
        _ => bold(text),
    });
    parts.collect()
}
