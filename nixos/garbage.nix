# services.castore-fs.gc: a timer that deletes what no root reaches in local stores.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) execArgs;
  inherit (import ./declared.nix { inherit lib cfg; }) stores;
  isLocal = store: store.url or null != null && lib.hasPrefix "local:" store.url;
  names =
    if cfg.gc.stores == null then
      lib.attrNames (lib.filterAttrs (_: isLocal) stores)
    else
      cfg.gc.stores;

  # As the command reads it: numbers with units, one after the other.
  milliseconds = {
    ms = 1;
    s = 1000;
    m = 60 * 1000;
    min = 60 * 1000;
    h = 60 * 60 * 1000;
    d = day;
  };
  day = 24 * 60 * 60 * 1000;
  ofOne = "([0-9]{1,9})(ms|s|min|m|h|d) *";
  lengthOf =
    text:
    lib.foldl' (
      total: part:
      if lib.isList part then
        total + lib.toIntBase10 (lib.head part) * milliseconds.${lib.last part}
      else
        total
    ) 0 (builtins.split ofOne text);

  # The forms of systemd.time(7), in lower case.
  weekday = "(mon(day)?|tue(sday)?|wed(nesday)?|thu(rsday)?|fri(day)?|sat(urday)?|sun(day)?)";
  calendar = lib.concatStringsSep "|" [
    "(minutely|hourly|daily|weekly|monthly|quarterly|semiannually|yearly|annually)( ${zone})?"
    "${weekday}((,|-|[.][.])${weekday})*,?( ${date})?( ${time})?( ${zone})?"
    "${date}( ${time})?( ${zone})?"
    "${time}( ${zone})?"
    "@[0-9]+"
  ];
  date = "[0-9*/,.]+[-~][-~0-9*/,.]+";
  time = "[0-9*/,.]+:[0-9*/,.:]+";
  zone = "[a-z_]+(/[-a-z0-9_+/]+)?";
in
{
  options.services.castore-fs.gc = {
    automatic = mkOption {
      type = types.bool;
      default = false;
      description = "Whether a timer runs `castore-fs gc` on this machine's local stores.";
    };

    dates = mkOption {
      type = types.str;
      default = "weekly";
      example = "03:15";
      description = "When: see `systemd.time(7)`. A time alone is daily.";
    };

    stores = mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      example = [ "disk" ];
      description = "The names of the stores, each of which has a `local:` URL; null for all that do.";
    };

    grace = mkOption {
      type = types.str;
      default = "1h";
      description = "How old what is removed has to be, at most `1d`.";
    };
  };

  config = lib.mkIf (cfg.enable && cfg.gc.automatic) {
    assertions =
      map (name: {
        assertion = isLocal (stores.${name} or { });
        message = ''services.castore-fs: `gc.stores` names "${name}", which is no declared store with a `local:` URL. Leave `gc.stores` out for all that have one.'';
      }) names
      ++ [
        {
          assertion = builtins.match "(${ofOne})+" cfg.gc.grace != null && lengthOf cfg.gc.grace <= day;
          message = ''services.castore-fs: `gc.grace` is "${cfg.gc.grace}", and has to be a length of time of at most one day, which is how long a store remembers: numbers with the units ms, s, m or min, h and d, as in "1h30m" or "1d".'';
        }
        {
          assertion = builtins.match "(${calendar})" (lib.toLower cfg.gc.dates) != null;
          message = ''services.castore-fs: `gc.dates` is "${cfg.gc.dates}", of which systemd makes no time. Write one as in "daily", "03:15", "Mon 03:15" or "*-*-01 03:15"; `systemd-analyze calendar` explains others.'';
        }
      ];

    systemd.timers.castore-fs-gc = {
      description = "Collect garbage in the stores of castore-fs";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.gc.dates;
        Persistent = true;
      };
    };

    systemd.services.castore-fs-gc = {
      description = "Collect garbage in the stores of castore-fs";
      # The daemon makes its store.
      after = [ "castore-fs.service" ];
      serviceConfig = {
        Type = "oneshot";
        # A store that cannot be collected fails the service, and keeps no other from being collected.
        ExecStart = execArgs [
          pkgs.runtimeShell
          "-c"
          (lib.concatLines (
            [ "failed=0" ]
            ++ map (
              name:
              "${
                lib.escapeShellArgs [
                  (lib.getExe cfg.package)
                  "gc"
                  "--store"
                  stores.${name}.url
                  "--grace"
                  cfg.gc.grace
                ]
              } || failed=1"
            ) names
            ++ [ "exit $failed" ]
          ))
        ];
        # It is in no hurry.
        CPUSchedulingPolicy = "idle";
        IOSchedulingClass = "idle";
        NoNewPrivileges = true;
        PrivateNetwork = true;
        # A store may be anywhere, in /home or /tmp too: the daemon finds it there.
        UMask = "0077";
      }
      // lib.optionalAttrs (cfg.user != null) {
        User = cfg.user;
        Group = cfg.group;
      };
    };
  };
}
