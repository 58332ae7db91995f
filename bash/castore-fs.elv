
use builtin;
use str;

set edit:completion:arg-completer[castore-fs] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'castore-fs'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'castore-fs'= {
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand -V 'Print version'
            cand --version 'Print version'
            cand import 'Put directories, files or archives into a store; prints the name of each'
            cand ls 'List root names, or what is in a directory'
            cand cat 'Write the contents of files to standard output'
            cand stat 'Show what a node is: type, size, digest, and what is known of a Nix store path'
            cand export 'Write a tree out: as files, as a tar or NAR archive, or as a disk image'
            cand mount 'Mount a store, and serve it until it is unmounted'
            cand virtiofs 'Serve a store to virtual machines over virtiofs'
            cand verify 'Read and hash again everything below some roots; report damage, and repair it'
            cand copy 'Copy roots and everything below them from one store to another'
            cand rm 'Remove roots from a store, by name'
            cand gc 'Remove everything that no root leads to, and give its room back to the disk'
            cand serve 'Serve a store to others over gRPC'
            cand daemon 'Run the service: stores, mounts and sockets, as a configuration file says'
            cand check-config 'Say what is wrong with a configuration file'
            cand status 'Show how the running service is'
            cand image 'Print the path and size of a disk image that the running service shows'
            cand prefetch 'Have the running service fetch everything below some roots into its cache'
            cand pin 'Have the running service keep in its cache what was read below some roots'
            cand unpin 'Take back `castore-fs pin`'
            cand drop-cache 'Have the running service let go of everything in its cache that is not pinned'
            cand profile 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned'
            cand generate 'Write shell completions, manual pages or the command reference'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;import'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --name 'The root''s name; by default the last component of PATH'
            cand --format 'PATH is an archive of this format; gzip, xz, zstd and bzip2 around it are recognised'
            cand --strip-components 'Of a tar archive, take so many leading components off every path'
            cand --max-size 'The most that an archive may decompress to, such as 100GiB. By default 8 GiB or 2000 times the archive, and 256 GiB of zeros in sparse files'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --nix 'Name it as Nix would (a content-addressed store path), and print the store path'
            cand --skip-special 'Leave out devices, sockets and named pipes, which a castore cannot hold'
            cand --json 'One JSON object a line: the root, what was read, and what of it was new'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;ls'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand -l 'Mode, size and digest before each name, and where a link points'
            cand -R 'Everything below, as paths'
            cand --recursive 'Everything below, as paths'
            cand -0 'End each line with NUL instead of a newline, and escape nothing'
            cand --zero 'End each line with NUL instead of a newline, and escape nothing'
            cand --json 'One JSON object a line: path, type, digest, size, executable, target'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;cat'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;stat'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --json 'One JSON object a line'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;export'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --format 'What to write'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;mount'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --import 'Import this folder or file first, under its own name'
            cand --root 'Show this directory at the top: NAME[/PATH] or the digest of a Directory'
            cand --list-root 'What listing the roots gives; they are found by name in any case'
            cand -o 'Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…'
            cand --options 'Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…'
            cand --uid 'Who owns everything: user id'
            cand --gid 'Who owns everything: group id'
            cand --threads 'Workers that read requests; by default one a core'
            cand --stay-awake 'Whether to keep processors from sleeping while a program asks one thing after the other, as `find` does in a cold tree; by default where there are two to eight'
            cand --reads 'How bytes come to their readers'
            cand --warmup 'Whether to learn which files the users of a root read first, and to fetch them ahead, in that order, when the root is mounted anew'
            cand --profiles 'The folder for what is learned'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --no-list-root 'Let roots be looked up by name only; listing them is refused'
            cand --allow-other 'Let other users see the mount: the default where root mounts'
            cand --no-allow-other 'Show the mount to this user only, not even to root'
            cand --xattr 'Answer extended attributes: digests, as user.castore.digest and under the peers'' names'
            cand --images 'Show trees as disk images too: .images/NAME.erofs and .images/HEX.erofs, by a root''s name or digest'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;virtiofs'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --socket 'Where to listen; several for several guests'
            cand --socket-mode 'The sockets'' permissions, in octal; who may write may connect'
            cand --socket-group 'The sockets'' group, by name or number'
            cand --tag 'The tag, for front ends that ask for it (crosvm); with others it is on their command line'
            cand --queues 'Request queues that a front end can use, each with a worker of its own'
            cand --root 'Show this directory at the top: NAME[/PATH] or the digest of a Directory'
            cand --list-root 'What listing the roots gives; they are found by name in any case'
            cand --uid 'Who owns everything: user id'
            cand --gid 'Who owns everything: group id'
            cand --metrics 'Tell metrics at HOST:PORT or unix:PATH, over HTTP, in the text format of Prometheus'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --no-list-root 'Let roots be looked up by name only; listing them is refused'
            cand --xattr 'Answer extended attributes: digests, as user.castore.digest and under the peers'' names'
            cand --no-sandbox 'Keep all privileges'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;verify'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --from 'Fetch what is damaged or missing from this store: a URL, or store:NAME; can be given several times'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --repair 'Repair the store, which has to be local:PATH'
            cand --json 'One JSON object a line: one for each damaged object, then the sum'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;copy'= {
            cand --from 'The store to read from: a URL, or store:NAME'
            cand --to 'The store to write to: a URL, or store:NAME'
            cand --config 'The configuration file that describes store:NAME'
            cand --all 'Every root of the store'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;rm'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --dry-run 'Only print the names that would be removed'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;gc'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --grace 'How old what is removed has to be, at most 1d: 0s spares nothing'
            cand --wait 'How long to wait for imports that are under way'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --dry-run 'Only say what would be removed'
            cand --json 'One JSON object'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;serve'= {
            cand --store 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes'
            cand --config 'The configuration file that describes store:NAME'
            cand --listen 'Where to listen: HOST:PORT, unix:PATH, or systemd for sockets passed on by systemd'
            cand --keep-free 'With --writable: what clients leave free on the store''s disk (1GiB, 500MiB)'
            cand --max-upload 'With --writable: the most that one upload may have (1GiB, 500MiB)'
            cand --max-connections 'Connections at once, no more than half of the files that the process may have open'
            cand --tls-cert 'TLS on TCP: the certificate chain (PEM)'
            cand --tls-key 'TLS on TCP: the private key (PEM)'
            cand --tls-client-ca 'Demand of clients a certificate that one of these signed (PEM)'
            cand --token-file 'Demand of clients one of the bearer tokens in this file; not on TCP without TLS'
            cand --max-calls 'Calls at once on a connection; more wait for their turn'
            cand --drain 'Seconds that running calls get after SIGTERM'
            cand --refresh 'Ask Nix binary caches again for names that they did not have within the last hour'
            cand --writable 'Let clients add to the store; what is there under a name stays'
            cand --allow-replace 'Let clients replace and remove root nodes too'
            cand --no-sandbox 'Keep all privileges'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;daemon'= {
            cand --config 'The configuration: see docs/config.md'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;check-config'= {
            cand --online 'Ask every store as well whether it is there: a line for each, within ten seconds'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;status'= {
            cand --socket 'The control socket'
            cand --json 'One JSON object'
            cand --watch 'Again every second, until interrupted'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;image'= {
            cand --socket 'The control socket'
            cand --mount 'The mount, by its name in the service''s configuration'
            cand --json 'One JSON object'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;prefetch'= {
            cand --socket 'The control socket'
            cand --store 'The cache, by its name in the service''s configuration; not needed if there is only one'
            cand --json 'One JSON object'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;pin'= {
            cand --socket 'The control socket'
            cand --store 'The cache, by its name in the service''s configuration; not needed if there is only one'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;unpin'= {
            cand --socket 'The control socket'
            cand --store 'The cache, by its name in the service''s configuration; not needed if there is only one'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;drop-cache'= {
            cand --socket 'The control socket'
            cand --store 'The cache, by its name in the service''s configuration; not needed if there is only one'
            cand --json 'One JSON object'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;profile'= {
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand list 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
            cand export 'Write a profile, with what was learned up to now, to standard output'
            cand import 'Put a profile in the place of what is known of its root'
            cand rm 'Forget profiles'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;profile;list'= {
            cand --socket 'The control socket'
            cand --folder 'The folder with the profiles, if not the running service''s: `profiles` in its state folder'
            cand --json 'One JSON object a profile'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;profile;export'= {
            cand --socket 'The control socket'
            cand --folder 'The folder with the profiles, if not the running service''s: `profiles` in its state folder'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;profile;import'= {
            cand --socket 'The control socket'
            cand --folder 'The folder with the profiles, if not the running service''s: `profiles` in its state folder'
            cand --as 'For the users of this root, instead of the one that the profile is of'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'castore-fs;profile;rm'= {
            cand --socket 'The control socket'
            cand --folder 'The folder with the profiles, if not the running service''s: `profiles` in its state folder'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;profile;help'= {
            cand list 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
            cand export 'Write a profile, with what was learned up to now, to standard output'
            cand import 'Put a profile in the place of what is known of its root'
            cand rm 'Forget profiles'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;profile;help;list'= {
        }
        &'castore-fs;profile;help;export'= {
        }
        &'castore-fs;profile;help;import'= {
        }
        &'castore-fs;profile;help;rm'= {
        }
        &'castore-fs;profile;help;help'= {
        }
        &'castore-fs;generate'= {
            cand -h 'Print help'
            cand --help 'Print help'
            cand completions 'Completions for bash, elvish, fish, powershell and zsh'
            cand man 'Manual pages'
            cand reference 'Every command''s help, as Markdown, on standard output'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;generate;completions'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;generate;man'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;generate;reference'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'castore-fs;generate;help'= {
            cand completions 'Completions for bash, elvish, fish, powershell and zsh'
            cand man 'Manual pages'
            cand reference 'Every command''s help, as Markdown, on standard output'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;generate;help;completions'= {
        }
        &'castore-fs;generate;help;man'= {
        }
        &'castore-fs;generate;help;reference'= {
        }
        &'castore-fs;generate;help;help'= {
        }
        &'castore-fs;help'= {
            cand import 'Put directories, files or archives into a store; prints the name of each'
            cand ls 'List root names, or what is in a directory'
            cand cat 'Write the contents of files to standard output'
            cand stat 'Show what a node is: type, size, digest, and what is known of a Nix store path'
            cand export 'Write a tree out: as files, as a tar or NAR archive, or as a disk image'
            cand mount 'Mount a store, and serve it until it is unmounted'
            cand virtiofs 'Serve a store to virtual machines over virtiofs'
            cand verify 'Read and hash again everything below some roots; report damage, and repair it'
            cand copy 'Copy roots and everything below them from one store to another'
            cand rm 'Remove roots from a store, by name'
            cand gc 'Remove everything that no root leads to, and give its room back to the disk'
            cand serve 'Serve a store to others over gRPC'
            cand daemon 'Run the service: stores, mounts and sockets, as a configuration file says'
            cand check-config 'Say what is wrong with a configuration file'
            cand status 'Show how the running service is'
            cand image 'Print the path and size of a disk image that the running service shows'
            cand prefetch 'Have the running service fetch everything below some roots into its cache'
            cand pin 'Have the running service keep in its cache what was read below some roots'
            cand unpin 'Take back `castore-fs pin`'
            cand drop-cache 'Have the running service let go of everything in its cache that is not pinned'
            cand profile 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned'
            cand generate 'Write shell completions, manual pages or the command reference'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'castore-fs;help;import'= {
        }
        &'castore-fs;help;ls'= {
        }
        &'castore-fs;help;cat'= {
        }
        &'castore-fs;help;stat'= {
        }
        &'castore-fs;help;export'= {
        }
        &'castore-fs;help;mount'= {
        }
        &'castore-fs;help;virtiofs'= {
        }
        &'castore-fs;help;verify'= {
        }
        &'castore-fs;help;copy'= {
        }
        &'castore-fs;help;rm'= {
        }
        &'castore-fs;help;gc'= {
        }
        &'castore-fs;help;serve'= {
        }
        &'castore-fs;help;daemon'= {
        }
        &'castore-fs;help;check-config'= {
        }
        &'castore-fs;help;status'= {
        }
        &'castore-fs;help;image'= {
        }
        &'castore-fs;help;prefetch'= {
        }
        &'castore-fs;help;pin'= {
        }
        &'castore-fs;help;unpin'= {
        }
        &'castore-fs;help;drop-cache'= {
        }
        &'castore-fs;help;profile'= {
            cand list 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
            cand export 'Write a profile, with what was learned up to now, to standard output'
            cand import 'Put a profile in the place of what is known of its root'
            cand rm 'Forget profiles'
        }
        &'castore-fs;help;profile;list'= {
        }
        &'castore-fs;help;profile;export'= {
        }
        &'castore-fs;help;profile;import'= {
        }
        &'castore-fs;help;profile;rm'= {
        }
        &'castore-fs;help;generate'= {
            cand completions 'Completions for bash, elvish, fish, powershell and zsh'
            cand man 'Manual pages'
            cand reference 'Every command''s help, as Markdown, on standard output'
        }
        &'castore-fs;help;generate;completions'= {
        }
        &'castore-fs;help;generate;man'= {
        }
        &'castore-fs;help;generate;reference'= {
        }
        &'castore-fs;help;help'= {
        }
    ]
    $completions[$command]
}
