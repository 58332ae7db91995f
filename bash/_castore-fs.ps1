
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'castore-fs' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'castore-fs'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'castore-fs' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('import', 'import', [CompletionResultType]::ParameterValue, 'Put directories, files or archives into a store; prints the name of each')
            [CompletionResult]::new('ls', 'ls', [CompletionResultType]::ParameterValue, 'List root names, or what is in a directory')
            [CompletionResult]::new('cat', 'cat', [CompletionResultType]::ParameterValue, 'Write the contents of files to standard output')
            [CompletionResult]::new('stat', 'stat', [CompletionResultType]::ParameterValue, 'Show what a node is: type, size, digest, and what is known of a Nix store path')
            [CompletionResult]::new('export', 'export', [CompletionResultType]::ParameterValue, 'Write a tree out: as files, as a tar or NAR archive, or as a disk image')
            [CompletionResult]::new('mount', 'mount', [CompletionResultType]::ParameterValue, 'Mount a store, and serve it until it is unmounted')
            [CompletionResult]::new('virtiofs', 'virtiofs', [CompletionResultType]::ParameterValue, 'Serve a store to virtual machines over virtiofs')
            [CompletionResult]::new('verify', 'verify', [CompletionResultType]::ParameterValue, 'Read and hash again everything below some roots; report damage, and repair it')
            [CompletionResult]::new('copy', 'copy', [CompletionResultType]::ParameterValue, 'Copy roots and everything below them from one store to another')
            [CompletionResult]::new('rm', 'rm', [CompletionResultType]::ParameterValue, 'Remove roots from a store, by name')
            [CompletionResult]::new('gc', 'gc', [CompletionResultType]::ParameterValue, 'Remove everything that no root leads to, and give its room back to the disk')
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Serve a store to others over gRPC')
            [CompletionResult]::new('daemon', 'daemon', [CompletionResultType]::ParameterValue, 'Run the service: stores, mounts and sockets, as a configuration file says')
            [CompletionResult]::new('check-config', 'check-config', [CompletionResultType]::ParameterValue, 'Say what is wrong with a configuration file')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show how the running service is')
            [CompletionResult]::new('image', 'image', [CompletionResultType]::ParameterValue, 'Print the path and size of a disk image that the running service shows')
            [CompletionResult]::new('prefetch', 'prefetch', [CompletionResultType]::ParameterValue, 'Have the running service fetch everything below some roots into its cache')
            [CompletionResult]::new('pin', 'pin', [CompletionResultType]::ParameterValue, 'Have the running service keep in its cache what was read below some roots')
            [CompletionResult]::new('unpin', 'unpin', [CompletionResultType]::ParameterValue, 'Take back `castore-fs pin`')
            [CompletionResult]::new('drop-cache', 'drop-cache', [CompletionResultType]::ParameterValue, 'Have the running service let go of everything in its cache that is not pinned')
            [CompletionResult]::new('profile', 'profile', [CompletionResultType]::ParameterValue, 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned')
            [CompletionResult]::new('generate', 'generate', [CompletionResultType]::ParameterValue, 'Write shell completions, manual pages or the command reference')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;import' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--name', '--name', [CompletionResultType]::ParameterName, 'The root''s name; by default the last component of PATH')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'PATH is an archive of this format; gzip, xz, zstd and bzip2 around it are recognised')
            [CompletionResult]::new('--strip-components', '--strip-components', [CompletionResultType]::ParameterName, 'Of a tar archive, take so many leading components off every path')
            [CompletionResult]::new('--max-size', '--max-size', [CompletionResultType]::ParameterName, 'The most that an archive may decompress to, such as 100GiB. By default 8 GiB or 2000 times the archive, and 256 GiB of zeros in sparse files')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--nix', '--nix', [CompletionResultType]::ParameterName, 'Name it as Nix would (a content-addressed store path), and print the store path')
            [CompletionResult]::new('--skip-special', '--skip-special', [CompletionResultType]::ParameterName, 'Leave out devices, sockets and named pipes, which a castore cannot hold')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object a line: the root, what was read, and what of it was new')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;ls' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('-l', '-l', [CompletionResultType]::ParameterName, 'Mode, size and digest before each name, and where a link points')
            [CompletionResult]::new('-R', '-R ', [CompletionResultType]::ParameterName, 'Everything below, as paths')
            [CompletionResult]::new('--recursive', '--recursive', [CompletionResultType]::ParameterName, 'Everything below, as paths')
            [CompletionResult]::new('-0', '-0', [CompletionResultType]::ParameterName, 'End each line with NUL instead of a newline, and escape nothing')
            [CompletionResult]::new('--zero', '--zero', [CompletionResultType]::ParameterName, 'End each line with NUL instead of a newline, and escape nothing')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object a line: path, type, digest, size, executable, target')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;cat' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;stat' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object a line')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;export' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'What to write')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;mount' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--import', '--import', [CompletionResultType]::ParameterName, 'Import this folder or file first, under its own name')
            [CompletionResult]::new('--root', '--root', [CompletionResultType]::ParameterName, 'Show this directory at the top: NAME[/PATH] or the digest of a Directory')
            [CompletionResult]::new('--list-root', '--list-root', [CompletionResultType]::ParameterName, 'What listing the roots gives; they are found by name in any case')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…')
            [CompletionResult]::new('--options', '--options', [CompletionResultType]::ParameterName, 'Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…')
            [CompletionResult]::new('--uid', '--uid', [CompletionResultType]::ParameterName, 'Who owns everything: user id')
            [CompletionResult]::new('--gid', '--gid', [CompletionResultType]::ParameterName, 'Who owns everything: group id')
            [CompletionResult]::new('--threads', '--threads', [CompletionResultType]::ParameterName, 'Workers that read requests; by default one a core')
            [CompletionResult]::new('--stay-awake', '--stay-awake', [CompletionResultType]::ParameterName, 'Whether to keep processors from sleeping while a program asks one thing after the other, as `find` does in a cold tree; by default where there are two to eight')
            [CompletionResult]::new('--reads', '--reads', [CompletionResultType]::ParameterName, 'How bytes come to their readers')
            [CompletionResult]::new('--warmup', '--warmup', [CompletionResultType]::ParameterName, 'Whether to learn which files the users of a root read first, and to fetch them ahead, in that order, when the root is mounted anew')
            [CompletionResult]::new('--profiles', '--profiles', [CompletionResultType]::ParameterName, 'The folder for what is learned')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--no-list-root', '--no-list-root', [CompletionResultType]::ParameterName, 'Let roots be looked up by name only; listing them is refused')
            [CompletionResult]::new('--allow-other', '--allow-other', [CompletionResultType]::ParameterName, 'Let other users see the mount: the default where root mounts')
            [CompletionResult]::new('--no-allow-other', '--no-allow-other', [CompletionResultType]::ParameterName, 'Show the mount to this user only, not even to root')
            [CompletionResult]::new('--xattr', '--xattr', [CompletionResultType]::ParameterName, 'Answer extended attributes: digests, as user.castore.digest and under the peers'' names')
            [CompletionResult]::new('--images', '--images', [CompletionResultType]::ParameterName, 'Show trees as disk images too: .images/NAME.erofs and .images/HEX.erofs, by a root''s name or digest')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;virtiofs' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'Where to listen; several for several guests')
            [CompletionResult]::new('--socket-mode', '--socket-mode', [CompletionResultType]::ParameterName, 'The sockets'' permissions, in octal; who may write may connect')
            [CompletionResult]::new('--socket-group', '--socket-group', [CompletionResultType]::ParameterName, 'The sockets'' group, by name or number')
            [CompletionResult]::new('--tag', '--tag', [CompletionResultType]::ParameterName, 'The tag, for front ends that ask for it (crosvm); with others it is on their command line')
            [CompletionResult]::new('--queues', '--queues', [CompletionResultType]::ParameterName, 'Request queues that a front end can use, each with a worker of its own')
            [CompletionResult]::new('--root', '--root', [CompletionResultType]::ParameterName, 'Show this directory at the top: NAME[/PATH] or the digest of a Directory')
            [CompletionResult]::new('--list-root', '--list-root', [CompletionResultType]::ParameterName, 'What listing the roots gives; they are found by name in any case')
            [CompletionResult]::new('--uid', '--uid', [CompletionResultType]::ParameterName, 'Who owns everything: user id')
            [CompletionResult]::new('--gid', '--gid', [CompletionResultType]::ParameterName, 'Who owns everything: group id')
            [CompletionResult]::new('--metrics', '--metrics', [CompletionResultType]::ParameterName, 'Tell metrics at HOST:PORT or unix:PATH, over HTTP, in the text format of Prometheus')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--no-list-root', '--no-list-root', [CompletionResultType]::ParameterName, 'Let roots be looked up by name only; listing them is refused')
            [CompletionResult]::new('--xattr', '--xattr', [CompletionResultType]::ParameterName, 'Answer extended attributes: digests, as user.castore.digest and under the peers'' names')
            [CompletionResult]::new('--no-sandbox', '--no-sandbox', [CompletionResultType]::ParameterName, 'Keep all privileges')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;verify' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Fetch what is damaged or missing from this store: a URL, or store:NAME; can be given several times')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--repair', '--repair', [CompletionResultType]::ParameterName, 'Repair the store, which has to be local:PATH')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object a line: one for each damaged object, then the sum')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;copy' {
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'The store to read from: a URL, or store:NAME')
            [CompletionResult]::new('--to', '--to', [CompletionResultType]::ParameterName, 'The store to write to: a URL, or store:NAME')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--all', '--all', [CompletionResultType]::ParameterName, 'Every root of the store')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;rm' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Only print the names that would be removed')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;gc' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--grace', '--grace', [CompletionResultType]::ParameterName, 'How old what is removed has to be, at most 1d: 0s spares nothing')
            [CompletionResult]::new('--wait', '--wait', [CompletionResultType]::ParameterName, 'How long to wait for imports that are under way')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Only say what would be removed')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;serve' {
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration file that describes store:NAME')
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Where to listen: HOST:PORT, unix:PATH, or systemd for sockets passed on by systemd')
            [CompletionResult]::new('--keep-free', '--keep-free', [CompletionResultType]::ParameterName, 'With --writable: what clients leave free on the store''s disk (1GiB, 500MiB)')
            [CompletionResult]::new('--max-upload', '--max-upload', [CompletionResultType]::ParameterName, 'With --writable: the most that one upload may have (1GiB, 500MiB)')
            [CompletionResult]::new('--max-connections', '--max-connections', [CompletionResultType]::ParameterName, 'Connections at once, no more than half of the files that the process may have open')
            [CompletionResult]::new('--tls-cert', '--tls-cert', [CompletionResultType]::ParameterName, 'TLS on TCP: the certificate chain (PEM)')
            [CompletionResult]::new('--tls-key', '--tls-key', [CompletionResultType]::ParameterName, 'TLS on TCP: the private key (PEM)')
            [CompletionResult]::new('--tls-client-ca', '--tls-client-ca', [CompletionResultType]::ParameterName, 'Demand of clients a certificate that one of these signed (PEM)')
            [CompletionResult]::new('--token-file', '--token-file', [CompletionResultType]::ParameterName, 'Demand of clients one of the bearer tokens in this file; not on TCP without TLS')
            [CompletionResult]::new('--max-calls', '--max-calls', [CompletionResultType]::ParameterName, 'Calls at once on a connection; more wait for their turn')
            [CompletionResult]::new('--drain', '--drain', [CompletionResultType]::ParameterName, 'Seconds that running calls get after SIGTERM')
            [CompletionResult]::new('--refresh', '--refresh', [CompletionResultType]::ParameterName, 'Ask Nix binary caches again for names that they did not have within the last hour')
            [CompletionResult]::new('--writable', '--writable', [CompletionResultType]::ParameterName, 'Let clients add to the store; what is there under a name stays')
            [CompletionResult]::new('--allow-replace', '--allow-replace', [CompletionResultType]::ParameterName, 'Let clients replace and remove root nodes too')
            [CompletionResult]::new('--no-sandbox', '--no-sandbox', [CompletionResultType]::ParameterName, 'Keep all privileges')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;daemon' {
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'The configuration: see docs/config.md')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;check-config' {
            [CompletionResult]::new('--online', '--online', [CompletionResultType]::ParameterName, 'Ask every store as well whether it is there: a line for each, within ten seconds')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;status' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object')
            [CompletionResult]::new('--watch', '--watch', [CompletionResultType]::ParameterName, 'Again every second, until interrupted')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;image' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--mount', '--mount', [CompletionResultType]::ParameterName, 'The mount, by its name in the service''s configuration')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;prefetch' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The cache, by its name in the service''s configuration; not needed if there is only one')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;pin' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The cache, by its name in the service''s configuration; not needed if there is only one')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;unpin' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The cache, by its name in the service''s configuration; not needed if there is only one')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;drop-cache' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'The cache, by its name in the service''s configuration; not needed if there is only one')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;profile' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB')
            [CompletionResult]::new('export', 'export', [CompletionResultType]::ParameterValue, 'Write a profile, with what was learned up to now, to standard output')
            [CompletionResult]::new('import', 'import', [CompletionResultType]::ParameterValue, 'Put a profile in the place of what is known of its root')
            [CompletionResult]::new('rm', 'rm', [CompletionResultType]::ParameterValue, 'Forget profiles')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;profile;list' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--folder', '--folder', [CompletionResultType]::ParameterName, 'The folder with the profiles, if not the running service''s: `profiles` in its state folder')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'One JSON object a profile')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;profile;export' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--folder', '--folder', [CompletionResultType]::ParameterName, 'The folder with the profiles, if not the running service''s: `profiles` in its state folder')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;profile;import' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--folder', '--folder', [CompletionResultType]::ParameterName, 'The folder with the profiles, if not the running service''s: `profiles` in its state folder')
            [CompletionResult]::new('--as', '--as', [CompletionResultType]::ParameterName, 'For the users of this root, instead of the one that the profile is of')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'castore-fs;profile;rm' {
            [CompletionResult]::new('--socket', '--socket', [CompletionResultType]::ParameterName, 'The control socket')
            [CompletionResult]::new('--folder', '--folder', [CompletionResultType]::ParameterName, 'The folder with the profiles, if not the running service''s: `profiles` in its state folder')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;profile;help' {
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB')
            [CompletionResult]::new('export', 'export', [CompletionResultType]::ParameterValue, 'Write a profile, with what was learned up to now, to standard output')
            [CompletionResult]::new('import', 'import', [CompletionResultType]::ParameterValue, 'Put a profile in the place of what is known of its root')
            [CompletionResult]::new('rm', 'rm', [CompletionResultType]::ParameterValue, 'Forget profiles')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;profile;help;list' {
            break
        }
        'castore-fs;profile;help;export' {
            break
        }
        'castore-fs;profile;help;import' {
            break
        }
        'castore-fs;profile;help;rm' {
            break
        }
        'castore-fs;profile;help;help' {
            break
        }
        'castore-fs;generate' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Completions for bash, elvish, fish, powershell and zsh')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Manual pages')
            [CompletionResult]::new('reference', 'reference', [CompletionResultType]::ParameterValue, 'Every command''s help, as Markdown, on standard output')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;generate;completions' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;generate;man' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;generate;reference' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'castore-fs;generate;help' {
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Completions for bash, elvish, fish, powershell and zsh')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Manual pages')
            [CompletionResult]::new('reference', 'reference', [CompletionResultType]::ParameterValue, 'Every command''s help, as Markdown, on standard output')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;generate;help;completions' {
            break
        }
        'castore-fs;generate;help;man' {
            break
        }
        'castore-fs;generate;help;reference' {
            break
        }
        'castore-fs;generate;help;help' {
            break
        }
        'castore-fs;help' {
            [CompletionResult]::new('import', 'import', [CompletionResultType]::ParameterValue, 'Put directories, files or archives into a store; prints the name of each')
            [CompletionResult]::new('ls', 'ls', [CompletionResultType]::ParameterValue, 'List root names, or what is in a directory')
            [CompletionResult]::new('cat', 'cat', [CompletionResultType]::ParameterValue, 'Write the contents of files to standard output')
            [CompletionResult]::new('stat', 'stat', [CompletionResultType]::ParameterValue, 'Show what a node is: type, size, digest, and what is known of a Nix store path')
            [CompletionResult]::new('export', 'export', [CompletionResultType]::ParameterValue, 'Write a tree out: as files, as a tar or NAR archive, or as a disk image')
            [CompletionResult]::new('mount', 'mount', [CompletionResultType]::ParameterValue, 'Mount a store, and serve it until it is unmounted')
            [CompletionResult]::new('virtiofs', 'virtiofs', [CompletionResultType]::ParameterValue, 'Serve a store to virtual machines over virtiofs')
            [CompletionResult]::new('verify', 'verify', [CompletionResultType]::ParameterValue, 'Read and hash again everything below some roots; report damage, and repair it')
            [CompletionResult]::new('copy', 'copy', [CompletionResultType]::ParameterValue, 'Copy roots and everything below them from one store to another')
            [CompletionResult]::new('rm', 'rm', [CompletionResultType]::ParameterValue, 'Remove roots from a store, by name')
            [CompletionResult]::new('gc', 'gc', [CompletionResultType]::ParameterValue, 'Remove everything that no root leads to, and give its room back to the disk')
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Serve a store to others over gRPC')
            [CompletionResult]::new('daemon', 'daemon', [CompletionResultType]::ParameterValue, 'Run the service: stores, mounts and sockets, as a configuration file says')
            [CompletionResult]::new('check-config', 'check-config', [CompletionResultType]::ParameterValue, 'Say what is wrong with a configuration file')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show how the running service is')
            [CompletionResult]::new('image', 'image', [CompletionResultType]::ParameterValue, 'Print the path and size of a disk image that the running service shows')
            [CompletionResult]::new('prefetch', 'prefetch', [CompletionResultType]::ParameterValue, 'Have the running service fetch everything below some roots into its cache')
            [CompletionResult]::new('pin', 'pin', [CompletionResultType]::ParameterValue, 'Have the running service keep in its cache what was read below some roots')
            [CompletionResult]::new('unpin', 'unpin', [CompletionResultType]::ParameterValue, 'Take back `castore-fs pin`')
            [CompletionResult]::new('drop-cache', 'drop-cache', [CompletionResultType]::ParameterValue, 'Have the running service let go of everything in its cache that is not pinned')
            [CompletionResult]::new('profile', 'profile', [CompletionResultType]::ParameterValue, 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned')
            [CompletionResult]::new('generate', 'generate', [CompletionResultType]::ParameterValue, 'Write shell completions, manual pages or the command reference')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'castore-fs;help;import' {
            break
        }
        'castore-fs;help;ls' {
            break
        }
        'castore-fs;help;cat' {
            break
        }
        'castore-fs;help;stat' {
            break
        }
        'castore-fs;help;export' {
            break
        }
        'castore-fs;help;mount' {
            break
        }
        'castore-fs;help;virtiofs' {
            break
        }
        'castore-fs;help;verify' {
            break
        }
        'castore-fs;help;copy' {
            break
        }
        'castore-fs;help;rm' {
            break
        }
        'castore-fs;help;gc' {
            break
        }
        'castore-fs;help;serve' {
            break
        }
        'castore-fs;help;daemon' {
            break
        }
        'castore-fs;help;check-config' {
            break
        }
        'castore-fs;help;status' {
            break
        }
        'castore-fs;help;image' {
            break
        }
        'castore-fs;help;prefetch' {
            break
        }
        'castore-fs;help;pin' {
            break
        }
        'castore-fs;help;unpin' {
            break
        }
        'castore-fs;help;drop-cache' {
            break
        }
        'castore-fs;help;profile' {
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB')
            [CompletionResult]::new('export', 'export', [CompletionResultType]::ParameterValue, 'Write a profile, with what was learned up to now, to standard output')
            [CompletionResult]::new('import', 'import', [CompletionResultType]::ParameterValue, 'Put a profile in the place of what is known of its root')
            [CompletionResult]::new('rm', 'rm', [CompletionResultType]::ParameterValue, 'Forget profiles')
            break
        }
        'castore-fs;help;profile;list' {
            break
        }
        'castore-fs;help;profile;export' {
            break
        }
        'castore-fs;help;profile;import' {
            break
        }
        'castore-fs;help;profile;rm' {
            break
        }
        'castore-fs;help;generate' {
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Completions for bash, elvish, fish, powershell and zsh')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Manual pages')
            [CompletionResult]::new('reference', 'reference', [CompletionResultType]::ParameterValue, 'Every command''s help, as Markdown, on standard output')
            break
        }
        'castore-fs;help;generate;completions' {
            break
        }
        'castore-fs;help;generate;man' {
            break
        }
        'castore-fs;help;generate;reference' {
            break
        }
        'castore-fs;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
