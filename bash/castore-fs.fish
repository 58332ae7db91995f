# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_castore_fs_global_optspecs
    string join \n h/help V/version
end

function __fish_castore_fs_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_castore_fs_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_castore_fs_using_subcommand
    set -l cmd (__fish_castore_fs_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c castore-fs -n "__fish_castore_fs_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -s V -l version -d 'Print version'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "import" -d 'Put directories, files or archives into a store; prints the name of each'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "ls" -d 'List root names, or what is in a directory'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "cat" -d 'Write the contents of files to standard output'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "stat" -d 'Show what a node is: type, size, digest, and what is known of a Nix store path'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "export" -d 'Write a tree out: as files, as a tar or NAR archive, or as a disk image'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "mount" -d 'Mount a store, and serve it until it is unmounted'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "virtiofs" -d 'Serve a store to virtual machines over virtiofs'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "verify" -d 'Read and hash again everything below some roots; report damage, and repair it'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "copy" -d 'Copy roots and everything below them from one store to another'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "rm" -d 'Remove roots from a store, by name'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "gc" -d 'Remove everything that no root leads to, and give its room back to the disk'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "serve" -d 'Serve a store to others over gRPC'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "daemon" -d 'Run the service: stores, mounts and sockets, as a configuration file says'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "check-config" -d 'Say what is wrong with a configuration file'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "status" -d 'Show how the running service is'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "image" -d 'Print the path and size of a disk image that the running service shows'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "prefetch" -d 'Have the running service fetch everything below some roots into its cache'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "pin" -d 'Have the running service keep in its cache what was read below some roots'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "unpin" -d 'Take back `castore-fs pin`'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "drop-cache" -d 'Have the running service let go of everything in its cache that is not pinned'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "profile" -d 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "generate" -d 'Write shell completions, manual pages or the command reference'
complete -c castore-fs -n "__fish_castore_fs_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l name -d 'The root\'s name; by default the last component of PATH' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l format -d 'PATH is an archive of this format; gzip, xz, zstd and bzip2 around it are recognised' -r -f -a "tar\t'A tar archive'
nar\t'A Nix archive'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l strip-components -d 'Of a tar archive, take so many leading components off every path' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l max-size -d 'The most that an archive may decompress to, such as 100GiB. By default 8 GiB or 2000 times the archive, and 256 GiB of zeros in sparse files' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l nix -d 'Name it as Nix would (a content-addressed store path), and print the store path'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l skip-special -d 'Leave out devices, sockets and named pipes, which a castore cannot hold'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -l json -d 'One JSON object a line: the root, what was read, and what of it was new'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -s l -d 'Mode, size and digest before each name, and where a link points'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -s R -l recursive -d 'Everything below, as paths'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -s 0 -l zero -d 'End each line with NUL instead of a newline, and escape nothing'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -l json -d 'One JSON object a line: path, type, digest, size, executable, target'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand cat" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand cat" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand cat" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand cat" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand stat" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand stat" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand stat" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand stat" -l json -d 'One JSON object a line'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand stat" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand export" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand export" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand export" -l format -d 'What to write' -r -f -a "dir\t'Files, directories and symbolic links'
tar\t'A tar archive (ustar with pax headers)'
nar\t'A Nix archive'
erofs\t'An EROFS disk image'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand export" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l import -d 'Import this folder or file first, under its own name' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l root -d 'Show this directory at the top: NAME[/PATH] or the digest of a Directory' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l list-root -d 'What listing the roots gives; they are found by name in any case' -r -f -a "all\t'All of them'
empty\t'An empty directory, for the lower layer of an overlay'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -s o -l options -d 'Options of mount(8) that do not depend on the file system: noexec,nosymfollow,sync,…' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l uid -d 'Who owns everything: user id' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l gid -d 'Who owns everything: group id' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l threads -d 'Workers that read requests; by default one a core' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l stay-awake -d 'Whether to keep processors from sleeping while a program asks one thing after the other, as `find` does in a cold tree; by default where there are two to eight' -r -f -a "true\t''
false\t''"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l reads -d 'How bytes come to their readers' -r -f -a "page-cache\t'Through the mount\'s page cache, every byte verified; best for many small files'
passthrough\t'The kernel reads large files from the store\'s disk itself, unverified; best for large files. Needs Linux 6.9 and CAP_SYS_ADMIN, else page-cache is used'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l warmup -d 'Whether to learn which files the users of a root read first, and to fetch them ahead, in that order, when the root is mounted anew' -r -f -a "off\t'Neither'
learn\t'Both'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l profiles -d 'The folder for what is learned' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l no-list-root -d 'Let roots be looked up by name only; listing them is refused'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l allow-other -d 'Let other users see the mount: the default where root mounts'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l no-allow-other -d 'Show the mount to this user only, not even to root'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l xattr -d 'Answer extended attributes: digests, as user.castore.digest and under the peers\' names'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -l images -d 'Show trees as disk images too: .images/NAME.erofs and .images/HEX.erofs, by a root\'s name or digest'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand mount" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l socket -d 'Where to listen; several for several guests' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l socket-mode -d 'The sockets\' permissions, in octal; who may write may connect' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l socket-group -d 'The sockets\' group, by name or number' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l tag -d 'The tag, for front ends that ask for it (crosvm); with others it is on their command line' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l queues -d 'Request queues that a front end can use, each with a worker of its own' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l root -d 'Show this directory at the top: NAME[/PATH] or the digest of a Directory' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l list-root -d 'What listing the roots gives; they are found by name in any case' -r -f -a "all\t'All of them'
empty\t'An empty directory, for the lower layer of an overlay'"
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l uid -d 'Who owns everything: user id' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l gid -d 'Who owns everything: group id' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l metrics -d 'Tell metrics at HOST:PORT or unix:PATH, over HTTP, in the text format of Prometheus' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l no-list-root -d 'Let roots be looked up by name only; listing them is refused'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l xattr -d 'Answer extended attributes: digests, as user.castore.digest and under the peers\' names'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -l no-sandbox -d 'Keep all privileges'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand virtiofs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l from -d 'Fetch what is damaged or missing from this store: a URL, or store:NAME; can be given several times' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l repair -d 'Repair the store, which has to be local:PATH'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -l json -d 'One JSON object a line: one for each damaged object, then the sum'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand copy" -l from -d 'The store to read from: a URL, or store:NAME' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand copy" -l to -d 'The store to write to: a URL, or store:NAME' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand copy" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand copy" -l all -d 'Every root of the store'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand copy" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand rm" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand rm" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand rm" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand rm" -l dry-run -d 'Only print the names that would be removed'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l grace -d 'How old what is removed has to be, at most 1d: 0s spares nothing' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l wait -d 'How long to wait for imports that are under way' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l dry-run -d 'Only say what would be removed'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -l json -d 'One JSON object'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand gc" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l store -d 'The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…, nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l config -d 'The configuration file that describes store:NAME' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l listen -d 'Where to listen: HOST:PORT, unix:PATH, or systemd for sockets passed on by systemd' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l keep-free -d 'With --writable: what clients leave free on the store\'s disk (1GiB, 500MiB)' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l max-upload -d 'With --writable: the most that one upload may have (1GiB, 500MiB)' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l max-connections -d 'Connections at once, no more than half of the files that the process may have open' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l tls-cert -d 'TLS on TCP: the certificate chain (PEM)' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l tls-key -d 'TLS on TCP: the private key (PEM)' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l tls-client-ca -d 'Demand of clients a certificate that one of these signed (PEM)' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l token-file -d 'Demand of clients one of the bearer tokens in this file; not on TCP without TLS' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l max-calls -d 'Calls at once on a connection; more wait for their turn' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l drain -d 'Seconds that running calls get after SIGTERM' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l refresh -d 'Ask Nix binary caches again for names that they did not have within the last hour'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l writable -d 'Let clients add to the store; what is there under a name stays'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l allow-replace -d 'Let clients replace and remove root nodes too'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -l no-sandbox -d 'Keep all privileges'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand daemon" -l config -d 'The configuration: see docs/config.md' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand daemon" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand check-config" -l online -d 'Ask every store as well whether it is there: a line for each, within ten seconds'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand check-config" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand status" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand status" -l json -d 'One JSON object'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand status" -l watch -d 'Again every second, until interrupted'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand image" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand image" -l mount -d 'The mount, by its name in the service\'s configuration' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand image" -l json -d 'One JSON object'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand image" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand prefetch" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand prefetch" -l store -d 'The cache, by its name in the service\'s configuration; not needed if there is only one' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand prefetch" -l json -d 'One JSON object'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand prefetch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand pin" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand pin" -l store -d 'The cache, by its name in the service\'s configuration; not needed if there is only one' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand pin" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand unpin" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand unpin" -l store -d 'The cache, by its name in the service\'s configuration; not needed if there is only one' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand unpin" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand drop-cache" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand drop-cache" -l store -d 'The cache, by its name in the service\'s configuration; not needed if there is only one' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand drop-cache" -l json -d 'One JSON object'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand drop-cache" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -f -a "list" -d 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -f -a "export" -d 'Write a profile, with what was learned up to now, to standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -f -a "import" -d 'Put a profile in the place of what is known of its root'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -f -a "rm" -d 'Forget profiles'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and not __fish_seen_subcommand_from list export import rm help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from list" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from list" -l folder -d 'The folder with the profiles, if not the running service\'s: `profiles` in its state folder' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from list" -l json -d 'One JSON object a profile'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from export" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from export" -l folder -d 'The folder with the profiles, if not the running service\'s: `profiles` in its state folder' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from import" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from import" -l folder -d 'The folder with the profiles, if not the running service\'s: `profiles` in its state folder' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from import" -l as -d 'For the users of this root, instead of the one that the profile is of' -r
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from rm" -l socket -d 'The control socket' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from rm" -l folder -d 'The folder with the profiles, if not the running service\'s: `profiles` in its state folder' -r -F
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "export" -d 'Write a profile, with what was learned up to now, to standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "import" -d 'Put a profile in the place of what is known of its root'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "rm" -d 'Forget profiles'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand profile; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and not __fish_seen_subcommand_from completions man reference help" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and not __fish_seen_subcommand_from completions man reference help" -f -a "completions" -d 'Completions for bash, elvish, fish, powershell and zsh'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and not __fish_seen_subcommand_from completions man reference help" -f -a "man" -d 'Manual pages'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and not __fish_seen_subcommand_from completions man reference help" -f -a "reference" -d 'Every command\'s help, as Markdown, on standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and not __fish_seen_subcommand_from completions man reference help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from completions" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from man" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from reference" -s h -l help -d 'Print help'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "completions" -d 'Completions for bash, elvish, fish, powershell and zsh'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "man" -d 'Manual pages'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "reference" -d 'Every command\'s help, as Markdown, on standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "import" -d 'Put directories, files or archives into a store; prints the name of each'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "ls" -d 'List root names, or what is in a directory'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "cat" -d 'Write the contents of files to standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "stat" -d 'Show what a node is: type, size, digest, and what is known of a Nix store path'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "export" -d 'Write a tree out: as files, as a tar or NAR archive, or as a disk image'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "mount" -d 'Mount a store, and serve it until it is unmounted'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "virtiofs" -d 'Serve a store to virtual machines over virtiofs'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "verify" -d 'Read and hash again everything below some roots; report damage, and repair it'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "copy" -d 'Copy roots and everything below them from one store to another'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "rm" -d 'Remove roots from a store, by name'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "gc" -d 'Remove everything that no root leads to, and give its room back to the disk'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "serve" -d 'Serve a store to others over gRPC'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "daemon" -d 'Run the service: stores, mounts and sockets, as a configuration file says'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "check-config" -d 'Say what is wrong with a configuration file'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "status" -d 'Show how the running service is'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "image" -d 'Print the path and size of a disk image that the running service shows'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "prefetch" -d 'Have the running service fetch everything below some roots into its cache'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "pin" -d 'Have the running service keep in its cache what was read below some roots'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "unpin" -d 'Take back `castore-fs pin`'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "drop-cache" -d 'Have the running service let go of everything in its cache that is not pinned'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "profile" -d 'See, ship and forget what mounts and guests with `warmup = "learn"` have learned'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "generate" -d 'Write shell completions, manual pages or the command reference'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and not __fish_seen_subcommand_from import ls cat stat export mount virtiofs verify copy rm gc serve daemon check-config status image prefetch pin unpin drop-cache profile generate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "list" -d 'List the profiles that there are: of each how many files it names, and how many stretches of them, of up to 1 MiB'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "export" -d 'Write a profile, with what was learned up to now, to standard output'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "import" -d 'Put a profile in the place of what is known of its root'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from profile" -f -a "rm" -d 'Forget profiles'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from generate" -f -a "completions" -d 'Completions for bash, elvish, fish, powershell and zsh'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from generate" -f -a "man" -d 'Manual pages'
complete -c castore-fs -n "__fish_castore_fs_using_subcommand help; and __fish_seen_subcommand_from generate" -f -a "reference" -d 'Every command\'s help, as Markdown, on standard output'
