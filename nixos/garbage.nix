# services.castore-fs.gc: a timer that deletes what no root reaches in local stores.
{
  config,
  lib,
  ...
}:

let
  inherit (lib) mkOption types;
  cfg = config.services.castore-fs;
  inherit (import ./render.nix { inherit lib; }) execArgs;

  # Without any the daemon has one of its own.
  stores =
    if cfg.settings.stores == { } then
      { default.url = "local:/var/lib/castore-fs"; }
    else
      cfg.settings.stores;
  isLocal = store: store.url or null != null && lib.hasPrefix "local:" store.url;
  names =
    if cfg.gc.stores == null then
      lib.attrNames (lib.filterAttrs (_: isLocal) stores)
    else
      cfg.gc.stores;
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
      description = "When: see `systemd.time(7)`.";
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
    assertions = map (name: {
      assertion = isLocal (stores.${name} or { });
      message = ''services.castore-fs: `gc.stores` names "${name}", which is no declared store with a `local:` URL. Leave `gc.stores` out for all that have one.'';
    }) names;

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
        ExecStart = map (
          name:
          execArgs [
            (lib.getExe cfg.package)
            "gc"
            "--store"
            stores.${name}.url
            "--grace"
            cfg.gc.grace
          ]
        ) names;
        # It is in no hurry.
        CPUSchedulingPolicy = "idle";
        IOSchedulingClass = "idle";
        NoNewPrivileges = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        ProtectHome = true;
        UMask = "0077";
      }
      // lib.optionalAttrs (cfg.user != null) {
        User = cfg.user;
        Group = cfg.group;
      };
    };
  };
}
